from __future__ import annotations

import re
from typing import Any

import pydantic
import pytest

from pretraining.models.bert.config import BertConfig
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.mae.config import MAEConfig
from pretraining.models.t5.config import T5Config
from pretraining.models.vit.config import ViTConfig
from pretraining.optim.base import Settings, layers_above, settings_by_name
from pretraining.optim.config import AdafactorConfig, AdamWConfig, LambConfig, OptimizerConfig
from pretraining.parallel.layers import PlainLayers

SMALL: dict[str, Any] = {"num_layers": 3, "hidden_size": 16, "num_heads": 2}
TEXT, IMAGES = SMALL | {"max_seq_len": 8}, SMALL | {"image_size": 8, "patch_size": 4}
BLOCKS = {"blocks.0.": 3, "blocks.1.": 2, "blocks.2.": 1}
TWO_STACKS = {f"encoder.{name}": above for name, above in BLOCKS.items()} | {
    "decoder.blocks.0.": 2,
    "decoder.blocks.1.": 1,
}
VISION_ENDS = {
    "encoder.class_token": 4,
    "encoder.position_embedding": 4,
    "encoder.patch_embedding.": 4,
    "encoder.final_norm.": 0,
}
# By family: a model, and how many layers lie above the parameters whose names begin so.
FAMILIES: dict[str, tuple[Any, dict[str, int]]] = {
    "bert": (
        BertConfig(name="bert", norm_position="pre", **TEXT),
        BLOCKS
        | {
            "token_embedding.": 4,
            "position_embedding.": 4,
            "segment_embedding.": 4,
            "embedding_norm.": 4,
            "final_norm.": 0,
            "head.": 0,
            "pair_head.": 0,
        },
    ),
    "gpt": (
        GPTConfig(name="gpt", tie_embeddings=False, **TEXT),
        BLOCKS | {"token_embedding.": 4, "position_embedding.": 4, "final_norm.": 0, "head.": 0},
    ),
    "t5": (
        T5Config(name="t5", num_decoder_layers=2, tie_embeddings=False, **TEXT),
        TWO_STACKS
        | {
            "token_embedding.": 4,
            "encoder.relative_bias.": 4,
            "decoder.relative_bias.": 3,
            "encoder.final_norm.": 0,
            "decoder.final_norm.": 0,
            "head.": 0,
        },
    ),
    "vit": (
        ViTConfig(name="vit", **IMAGES),
        VISION_ENDS | {f"encoder.{n}": a for n, a in BLOCKS.items()} | {"head.": 0},
    ),
    "mae": (
        MAEConfig(
            name="mae", decoder_num_layers=2, decoder_hidden_size=8, decoder_num_heads=2, positions="learned", **IMAGES
        ),
        VISION_ENDS
        | TWO_STACKS
        | {"decoder.embedding.": 3, "decoder.mask_token": 3, "decoder.final_norm.": 0, "decoder.pixels.": 0},
    ),
}


def test_one_dimension_means_no_decay() -> None:
    shapes = {"blocks.0.up.weight": (4, 3), "blocks.0.up.bias": (4,), "final_norm.weight": (3,), "scale": ()}
    found = settings_by_name(shapes.items(), 0.1)
    assert found == {
        "blocks.0.up.weight": Settings(0.1),
        "blocks.0.up.bias": Settings(0.0),
        "final_norm.weight": Settings(0.0),
        "scale": Settings(0.0),
    }


def test_layers_are_counted_from_the_top() -> None:
    names = [
        "token_embedding.weight",
        "class_token",
        "blocks.0.norm.weight",
        "blocks.11.mlp.up.weight",
        "final_norm.weight",
        "head.bias",
    ]
    assert list(layers_above(names).values()) == [13, 13, 12, 1, 0, 0]


def test_each_stack_of_an_encoder_decoder_is_counted_by_itself() -> None:
    names = [
        "encoder.blocks.0.a",
        "encoder.blocks.2.a",
        "decoder.blocks.0.a",
        "decoder.blocks.1.a",
        "shared_embedding.weight",
        "decoder.final_norm.weight",
    ]
    assert list(layers_above(names).values()) == [3, 1, 2, 1, 4, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_decay_is_on_weights_and_tables_of_vectors_alone(family: str) -> None:
    """Biases and norms have none by their names, T5's two-dimensional relative bias among them."""
    parameters = FAMILIES[family][0].build(10, PlainLayers()).named_parameters()
    found = settings_by_name([(name, tuple(p.shape)) for name, p in parameters], 0.1)
    free = re.compile(r"bias|norm\.weight|_token$")
    assert {name for name, s in found.items() if s.weight_decay == 0.0} == {name for name in found if free.search(name)}
    assert {s.weight_decay for s in found.values()} == {0.0, 0.1}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_family_stands_in_its_layer(family: str) -> None:
    config, table = FAMILIES[family]
    found = layers_above(name for name, _ in config.build(10, PlainLayers()).named_parameters())
    for name, above in found.items():
        assert [above] == [number for begin, number in table.items() if name.startswith(begin)], name
    assert [begin for begin in table if not any(name.startswith(begin) for name in found)] == []


def test_the_learning_rate_falls_by_a_factor_per_layer() -> None:
    shapes = {"position_embedding.weight": (4, 3), "blocks.0.a": (4,), "blocks.1.a": (4,), "head.weight": (2, 2)}
    scales = [s.lr_scale for s in settings_by_name(shapes.items(), 0.1, layer_decay=0.5).values()]
    assert scales == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8}, AdamWConfig),
        ({"name": "lamb", "lr": 1e-3, "trust_clip": [0.1, 10.0]}, LambConfig),
        ({"name": "adafactor", "lr": 1e-2, "beta1": None}, AdafactorConfig),
    ],
)
def test_the_name_decides_the_kind(values: dict[str, Any], kind: type) -> None:
    found = pydantic.TypeAdapter(OptimizerConfig).validate_python(values, strict=False)
    assert type(found) is kind


@pytest.mark.parametrize(
    "wrong", [{"layer_decay": 0.0}, {"layer_decay": 1.1}, {"weight_decay": -1.0}, {"lr": 0.0}, {"momentum": 0.9}]
)
@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor"])
def test_values_out_of_range_and_unknown_keys_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        pydantic.TypeAdapter(OptimizerConfig).validate_python({"name": name, "lr": 1e-3} | wrong)
