"""What an objective does where nothing is set is what its paper did: the numbers, written out once more."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.common.compose import composed
from pretraining.config import RunConfig

PUBLISHED: dict[str, dict[str, Any]] = {
    "masked_lm": {"mask_rate": 0.15, "pairing": "next_sentence", "masking": "token"},  # Devlin et al. 2018, 3.1
    "replaced_token": {"mask_rate": 0.15, "mask_share": 0.85, "detection_weight": 50.0},  # Clark et al. 2020, 3.1, A
    "translation_lm": {"mask_rate": 0.15},  # Conneau and Lample 2019, 3.3
    "bidirectional_lm": {"characters": 50},  # Peters et al. 2018; allenai/bilm-tf, max_characters_per_token
    "permutation_lm": {
        "predict_one_in": 6,
        "longest_span": 5,
    },  # Yang et al. 2019, A.4; zihangdai/xlnet, num_predict 85
    "span_corruption": {"noise_density": 0.15, "mean_span_length": 3.0},  # Raffel et al. 2019, 3.1.4
    "denoising": {"rate": 0.3, "mean_span_length": 3.0, "permuted_sentences": 1.0},  # Lewis et al. 2019, 2.2, 5.1
    "translation": {"label_smoothing": 0.1, "beams": 4, "length_penalty": 0.6},  # Vaswani et al. 2017, 5.4, 6.1
    "masked_image": {"mask_ratio": 0.75, "norm_pix_loss": True},  # He et al. 2021, 4
    "macbert": {"ngram_law": [0.4, 0.3, 0.2, 0.1], "replacement": "similar"},  # Cui et al. 2020, 3.1
    "unilm": {"masking": "skipgram", "mask_rate": 0.15},  # Dong et al. 2019, 2.3
    "roberta": {"pairing": "none", "packing": "full_sentences"},  # Liu et al. 2019, 4
    "albert": {"masking": "ngram", "pairing": "sentence_order"},  # Lan et al. 2019, 3.1, 4.1
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_values_are_the_papers(name: str) -> None:
    values = composed("pretrain", [f"objective={name}"], RunConfig).whole["objective"]
    assert {key: values[key] for key in PUBLISHED[name]} == PUBLISHED[name]
