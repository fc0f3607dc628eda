"""What the first batches hold: batch_hash and the cumulative count of tokens, for every mode of every objective."""

from __future__ import annotations

from itertools import product
from typing import Any

from tests.golden.runs import Case, Data

KIND = "batches"
MODELS = {
    "causal_lm": "gpt_debug",
    "masked_lm": "bert_debug",
    "span_corruption": "t5_debug",
    "image_classification": "vit_debug",
    "masked_image": "mae_debug",
}
SHORT = ("model.num_layers=1", "train.steps=3", "train.eval_every=0")


def _case(name: str, objective: str, *overrides: str) -> Case:
    kind = "images" if "image" in objective else "text"
    keys = [o if "." in o.split("=")[0] else f"objective.{o}" for o in overrides]
    return Case(name, kind, (f"objective={objective}", f"model={MODELS[objective]}", *SHORT, *keys))


CASES = [
    _case("causal_lm", "causal_lm"),
    _case("causal_lm, across documents", "causal_lm", "cross_document_attention=true"),
    _case("causal_lm, fill in the middle", "causal_lm", "fim_rate=0.5"),
    # three steps reach into the second and third epoch
    _case("causal_lm, next epochs", "causal_lm", "train.global_batch_size=900", "train.micro_batch_size=100"),
    _case("causal_lm, other seed", "causal_lm", "train.seed=2"),
    _case("causal_lm, short sequences", "causal_lm", "data.seq_len=20"),
    _case("causal_lm, wide windows", "causal_lm", "data.window_blocks=12"),
    *[
        _case(f"masked_lm, {masking}, {pairing}", "masked_lm", f"masking={masking}", f"pairing={pairing}")
        for masking, pairing in product(("token", "whole_word", "ngram"), ("none", "next_sentence", "sentence_order"))
    ],
    _case("masked_lm, mask rate", "masked_lm", "mask_rate=0.4"),
    _case("span_corruption", "span_corruption"),
    _case("span_corruption, dense", "span_corruption", "noise_density=0.5", "mean_span_length=5.0"),
    _case("span_corruption, prefix", "span_corruption", "mode=prefix_lm"),
    _case("span_corruption, documents apart", "span_corruption", "documents=apart"),
    _case("span_corruption, documents apart, ul2", "span_corruption", "documents=apart", "mode=ul2"),
    _case("span_corruption, short targets", "span_corruption", "targets_length=6"),
    _case("span_corruption, ul2", "span_corruption", "mode=ul2"),
    _case("image_classification", "image_classification"),
    _case(
        "image_classification, crop and flip",
        "image_classification",
        "crop_scale=[0.5,0.8]",
        "crop_ratio=[0.5,1.0]",
        "flip_probability=0.1",
    ),
    _case("image_classification, cutmix", "image_classification", "cutmix=1.0"),
    _case("image_classification, mixup", "image_classification", "mixup=0.4"),
    _case("image_classification, mixup and cutmix", "image_classification", "mixup=0.4", "cutmix=1.0"),
    _case(
        "image_classification, next epoch",
        "image_classification",
        "train.global_batch_size=480",
        "train.micro_batch_size=160",
    ),
    _case(
        "image_classification, rand augment", "image_classification", "rand_augment_ops=2", "rand_augment_magnitude=7.0"
    ),
    _case("masked_image", "masked_image"),
    _case("masked_image, half", "masked_image", "mask_ratio=0.5", "crop_scale=[0.5,1.0]"),
]


def compute(case: Case, data: Data) -> dict[str, Any]:
    """-> for each of steps 1 to 3, batch_hash, and the cumulative tokens or images."""
    lines = case.run(data)
    unit = "images" if case.kind == "images" else "tokens"
    return {key: [int(line[key]) for line in lines] for key in ("batch_hash", unit)}
