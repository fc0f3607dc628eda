"""Where each family was published with dropout, and that the keys set the places apart."""

from __future__ import annotations

from typing import Any

import pytest

from pretraining.config import load_config
from pretraining.models.attention import Attention
from pretraining.models.layers import Dropout, FeedForward
from tests.building import build

FAMILIES = {
    "gpt_debug": "causal_lm",
    "bert_debug": "masked_lm",
    "t5_debug": "span_corruption",
    "vit_debug": "image_classification",
}


def rates(model: str, *overrides: str) -> tuple[set[float], set[float], set[float]]:
    """-> the rates of attention's weights, within feed-forwards, and after both."""
    config = load_config([f"model={model}", f"objective={FAMILIES[model]}", "data.path=x", *overrides]).model
    modules: list[Any] = list(build(config, 10).modules())
    return (
        {m.dropout for m in modules if isinstance(m, Attention)},
        {m.dropout.p for m in modules if isinstance(m, FeedForward)},
        {m.rate for m in modules if isinstance(m, Dropout)},
    )


@pytest.mark.parametrize(
    ("model", "attention", "mlp"),
    [
        ("gpt_debug", 0.2, 0.0),  # karpathy/nanoGPT, model.py
        ("bert_debug", 0.2, 0.0),  # google-research/bert, modeling.py
        ("t5_debug", 0.2, 0.2),  # Mesh TensorFlow, transformer_layers.py
        ("vit_debug", 0.0, 0.2),  # vision_transformer, models_vit.py, MlpBlock; its configs' attention_dropout_rate
    ],
)
def test_one_rate_stands_where_the_authors_have_it(model: str, attention: float, mlp: float) -> None:
    assert rates(model, "model.dropout=0.2") == ({attention}, {mlp}, {0.2})


@pytest.mark.parametrize("model", FAMILIES)
def test_each_place_has_a_key(model: str) -> None:
    found = rates(model, "model.dropout=0.2", "model.attention_dropout=0.3", "model.mlp_dropout=0.4")
    assert found == ({0.3}, {0.4}, {0.2})
    assert rates(model, "model.dropout=0.2", "model.attention_dropout=0.0", "model.mlp_dropout=0.0")[:2] == (
        {0.0},
        {0.0},
    )


def test_the_export_names_both() -> None:
    from pretraining.models.bert import huggingface as bert
    from pretraining.models.vit import huggingface as vit

    overrides = ["model.dropout=0.2", "model.attention_dropout=0.3", "data.path=x"]
    for preset, module in (("bert_debug", bert), ("vit_debug", vit)):
        config = load_config([f"model={preset}", f"objective={FAMILIES[preset]}", *overrides]).model
        written = module.huggingface_config(build(config, 10), {"pad": 0})
        assert (written["hidden_dropout_prob"], written["attention_probs_dropout_prob"]) == (0.2, 0.3)
