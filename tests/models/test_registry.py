"""The table of families, and a family from outside: one entry, no edit of any file of the package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.common.registry import load
from pretraining.models.bert.config import BertConfig
from pretraining.models.config import ModelConfig
from pretraining.models.heads import attach_heads
from pretraining.models.huggingface_map import HuggingFaceFamily
from pretraining.models.registry import FAMILIES, Family, build_model, huggingface_family
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.causal_lm import CausalLM, CausalLMConfig
from pretraining.objectives.text.masked_lm import MaskedLM, MaskedLMConfig
from pretraining.optim.groups import settings_by_name
from pretraining.parallel.layers import PlainLayers
from tests.building import vocabulary_for

CONFIG = """
from typing import Literal
from data_pipeline.common.fields import configclass
from pretraining.models.config import TextConfig

@configclass
class ToyConfig(TextConfig):
    name: Literal["toy"]
"""
MODEL = """
from torch import nn
from pretraining.models.attention import Attention
from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.initialization import initialize
from pretraining.models.transformer import TextModel
from pretraining.models.vocabulary import padded_vocabulary

class Block(Attention):
    def forward(self, x):
        return x + super().forward(x, causal=True)

class Toy(TextModel):
    def __init__(self, config, vocabulary, layers):
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.token_embedding = layers.embedding(padded_vocabulary(vocabulary.size), config.hidden_size)
        towers = (Block(layers, config.hidden_size, config.num_heads) for _ in range(config.num_layers))
        self.towers = nn.ModuleList(towers)

    def forward(self, tokens, positions=None, documents=None):
        return run_blocks(self.towers, self.token_embedding(tokens), checkpointing=False)

    def block_stacks(self):
        return [BlockStack(self.towers, (self.token_embedding,))]

    def initialize(self, seed):
        initialize(self, self.layers, seed, self.fill)

    def fill(self, name, tensor, generator):
        tensor.normal_(0, 0.02, generator=generator)
"""
TOKENIZER: Any = SimpleNamespace(
    pad=0, bos=1, eos=2, fim_prefix=3, fim_suffix=4, fim_middle=5, used_ids=lambda roles: np.arange(40)
)


def test_a_family_from_outside_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_config.py").write_text(CONFIG)
    (tmp_path / "toy_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "toy", Family("toy_config:ToyConfig", "toy_model:Toy", frozenset({Role.DECODER})))
    config = load(FAMILIES["toy"].config)("toy", 2, 16, 2, 8)
    layers, objective = PlainLayers(), CausalLM(CausalLMConfig("causal_lm"), SampleSpec(seq_len=8, tokenizer=TOKENIZER))
    model: Any = attach_heads(build_model(config, vocabulary_for(config, 40), layers), objective, layers)
    model.initialize(1)
    batch = {"tokens": torch.arange(8)[None], "labels": torch.arange(8)[None], "positions": torch.arange(8)[None]}
    objective.loss(model, batch)["causal_lm"].backward()
    settings = settings_by_name(model, dict(model.named_parameters()), 0.1, 0.5)
    assert settings["towers.0.query.weight"].lr_scale == 0.25
    assert settings["token_embedding.weight"].lr_scale == 0.125
    assert model.published_parameters() == sum(p.numel() for p in model.parameters()) - 88 * 16
    with pytest.raises(InputError, match=r"model\.name=toy has no Hugging Face counterpart"):
        huggingface_family("toy")
    for module in ("toy_config", "toy_model"):
        sys.modules.pop(module)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_entry_is_complete(name: str) -> None:
    """The config knows its name, and the Hugging Face module has what its Protocol says."""
    config = load(FAMILIES[name].config)
    assert issubclass(config, ModelConfig) and repr(name) in str(get_type_hints(config)["name"])
    assert FAMILIES[name].roles
    if FAMILIES[name].huggingface is not None:
        members = {m for m in vars(HuggingFaceFamily) if not m.startswith("_")} | {"architectures"}
        assert members <= set(dir(huggingface_family(name)))


@pytest.mark.parametrize("pairing", ["next_sentence", "sentence_order", "none"])
def test_bert_has_the_heads_that_its_objective_trains_and_no_others(pairing: Any) -> None:
    tokenizer: Any = SimpleNamespace(
        pad=0, cls=1, sep=2, mask=3, is_text=np.ones(40, bool), used_ids=lambda roles: np.arange(40)
    )
    objective = MaskedLM(MaskedLMConfig("masked_lm", pairing=pairing), SampleSpec(seq_len=16, tokenizer=tokenizer))
    layers = PlainLayers()
    model: Any = attach_heads(build_model(BertConfig("bert", 1, 16, 2, 16), Vocabulary(40), layers), objective, layers)
    model.initialize(1)
    assert model.head_names == (("head",) if pairing == "none" else ("head", "pair_head"))
    tokens = torch.arange(16)[None]
    batch = {"tokens": tokens, "segments": tokens // 8, "positions": tokens, "documents": tokens * 0}
    batch |= {"masked_positions": tokens[:, :2], "labels": tokens[:, :2], "pair_labels": torch.tensor([1])}
    sum(objective.loss(model, batch).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
