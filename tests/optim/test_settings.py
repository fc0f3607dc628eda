from __future__ import annotations

import json
import re
from typing import Any

import pydantic
import pytest
import torch
from torch import nn

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import PickedBy
from data_pipeline.common.registry import load
from pretraining.models.bert.config import BertConfig
from pretraining.models.blocks import BlockStack
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.mae.config import MAEConfig
from pretraining.models.t5.config import T5Config
from pretraining.models.transformer import TransformerModel
from pretraining.models.vit.config import ViTConfig
from pretraining.optim.base import Settings
from pretraining.optim.config import AdafactorConfig, AdamWConfig, LambConfig
from pretraining.optim.groups import settings_by_name
from pretraining.optim.registry import OPTIMIZERS
from tests import building

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


def settings_of(model: Any, weight_decay: float, layer_decay: float = 1.0) -> dict[str, Settings]:
    return settings_by_name(model, [name for name, _ in model.named_parameters()], weight_decay, layer_decay)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_family_stands_in_its_layer(family: str) -> None:
    config, table = FAMILIES[family]
    found = building.build(config, 10).parameter_depths()
    for name, above in found.items():
        assert [above] == [number for begin, number in table.items() if name.startswith(begin)], name
    assert [begin for begin in table if not any(name.startswith(begin) for name in found)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_decay_is_on_weights_and_tables_of_vectors_alone(family: str) -> None:
    """Biases and norms have none, T5's two-dimensional relative biases neither."""
    model = building.build(FAMILIES[family][0], 10)
    found = settings_of(model, 0.1)
    free = re.compile(r"bias|norm\.weight|_token$")
    assert {name for name, s in found.items() if s.exempt} == {name for name in found if free.search(name)}
    assert all(s.weight_decay == (0.0 if s.exempt else 0.1) for s in found.values())


# What the patterns on names gave before models said it themselves: weight_decay=0.1, layer_decay=0.5.
PINNED = {
    ("gpt", "token_embedding.weight"): Settings(0.1, 0.5**4),
    ("gpt", "blocks.0.attention.qkv.weight"): Settings(0.1, 0.5**3),
    ("gpt", "blocks.2.mlp.up.bias"): Settings(0.0, 0.5, exempt=True),
    ("gpt", "final_norm.weight"): Settings(0.0, 1.0, exempt=True),
    ("gpt", "head.weight"): Settings(0.1, 1.0),
    ("bert", "segment_embedding.weight"): Settings(0.1, 0.5**4),
    ("bert", "embedding_norm.bias"): Settings(0.0, 0.5**4, exempt=True),
    ("bert", "blocks.1.attention_norm.weight"): Settings(0.0, 0.5**2, exempt=True),
    ("bert", "head.decoder.bias"): Settings(0.0, 1.0, exempt=True),
    ("bert", "pair_head.pooler.weight"): Settings(0.1, 1.0),
    ("t5", "token_embedding.weight"): Settings(0.1, 0.5**4),
    ("t5", "encoder.relative_bias.table"): Settings(0.0, 0.5**4, exempt=True),
    ("t5", "decoder.relative_bias.table"): Settings(0.0, 0.5**3, exempt=True),
    ("t5", "decoder.blocks.0.cross_attention.query.weight"): Settings(0.1, 0.5**2),
    ("t5", "encoder.final_norm.weight"): Settings(0.0, 1.0, exempt=True),
    ("vit", "encoder.class_token"): Settings(0.0, 0.5**4, exempt=True),
    ("vit", "encoder.position_embedding"): Settings(0.1, 0.5**4),
    ("vit", "encoder.patch_embedding.weight"): Settings(0.1, 0.5**4),
    ("vit", "head.bias"): Settings(0.0, 1.0, exempt=True),
    ("mae", "encoder.blocks.0.mlp.up.weight"): Settings(0.1, 0.5**3),
    ("mae", "decoder.embedding.weight"): Settings(0.1, 0.5**3),
    ("mae", "decoder.mask_token"): Settings(0.0, 0.5**3, exempt=True),
    ("mae", "decoder.blocks.1.mlp.down.weight"): Settings(0.1, 0.5),
    ("mae", "decoder.pixels.weight"): Settings(0.1, 1.0),
}


@pytest.mark.parametrize(("family", "name"), PINNED)
def test_settings_are_the_pinned_ones(family: str, name: str) -> None:
    found = settings_of(building.build(FAMILIES[family][0], 10), 0.1, 0.5)
    assert found[name] == PINNED[family, name]


def test_a_tied_head_lies_where_the_embedding_does() -> None:
    model = building.build(GPTConfig(name="gpt", **TEXT), 10)
    assert model.parameter_depths()["token_embedding.weight"] == 4 and "head.weight" not in model.parameter_depths()


def test_a_tensor_that_is_frozen_does_not_move_the_others() -> None:
    model = building.build(GPTConfig(name="gpt", **TEXT), 10)
    names = [name for name, _ in model.named_parameters() if not name.startswith("blocks.2.")]
    assert settings_by_name(model, names, 0.1, 0.5)["blocks.0.mlp.up.weight"].lr_scale == 0.5**3


class Foreign(TransformerModel):
    """Named as in other libraries, and as nothing in this one."""

    def __init__(self, covered: bool) -> None:
        super().__init__()
        self.wte = nn.Embedding(4, 3)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(3, 3) for _ in range(2))})
        self.gamma = nn.Parameter(torch.ones(3))
        self.covered = covered

    def block_stacks(self) -> list[BlockStack]:
        layers: Any = self.encoder["layer"]
        return [BlockStack(layers, (self.wte,), (self.gamma,) if self.covered else ())]


def test_names_have_no_meaning() -> None:
    assert settings_of(Foreign(covered=True), 0.1, 0.5) == {
        "wte.weight": Settings(0.1, 0.125),
        "encoder.layer.0.weight": Settings(0.1, 0.25),
        "encoder.layer.0.bias": Settings(0.0, 0.25, exempt=True),
        "encoder.layer.1.weight": Settings(0.1, 0.5),
        "encoder.layer.1.bias": Settings(0.0, 0.5, exempt=True),
        "gamma": Settings(0.0, 1.0, exempt=True),
    }


def test_a_parameter_that_the_model_does_not_place_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"^gamma: Foreign\.block_stacks does not say"):
        settings_of(Foreign(covered=False), 0.1)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8}, AdamWConfig),
        ({"name": "lamb", "lr": 1e-3, "trust_clip": [0.1, 10.0]}, LambConfig),
        ({"name": "adafactor", "lr": 1e-2, "beta1": None}, AdafactorConfig),
    ],
)
def test_the_name_decides_the_kind(values: dict[str, Any], kind: type) -> None:
    assert PickedBy("pretraining.optim.registry:OPTIMIZERS").pick(values) is kind
    pydantic.TypeAdapter(kind).validate_json(json.dumps(values))


@pytest.mark.parametrize(
    "wrong", [{"layer_decay": 0.0}, {"layer_decay": 1.1}, {"weight_decay": -1.0}, {"lr": 0.0}, {"momentum": 0.9}]
)
@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor"])
def test_values_out_of_range_and_unknown_keys_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        load(OPTIMIZERS[name].config)(**{"name": name, "lr": 1e-3} | wrong)
