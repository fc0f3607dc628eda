"""Tiny models of every architecture in the adapter's table, with the heads that its role's objective asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretraining.labels import IGNORED
from pretraining.models.heads import attach_heads
from pretraining.models.huggingface.architectures import facts_of
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.registry import build_model
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import Layers, PlainLayers

SIZE, LENGTH = 300, 32  # of the vocabulary, which is padded to 384; of a sequence
TEXT = Vocabulary(SIZE, {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 5, "sep": 6})
IMAGES = Vocabulary(classes=7)
SHAPES: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
OWN: dict[str, dict[str, Any]] = {  # where an architecture has other keys, or needs more
    "AlbertForMaskedLM": {"settings": {"embedding_size": 16}},
    "AlbertForPreTraining": {"settings": {"embedding_size": 16}},
    "ElectraForMaskedLM": {"settings": {"embedding_size": 16}},
    "LongformerForMaskedLM": {"settings": {"attention_window": 8}},
    "BigBirdForMaskedLM": {"settings": {"block_size": 4, "num_random_blocks": 1}},
    "ReformerForMaskedLM": {
        "num_layers": None,
        "settings": {
            "attn_layers": ["local", "lsh"],
            "axial_pos_shape": [4, 8],
            "axial_pos_embds_dim": [8, 24],
            "attention_head_size": 16,
            "local_attn_chunk_length": 8,
            "lsh_attn_chunk_length": 8,
            "local_num_chunks_after": 1,
            "lsh_num_chunks_after": 1,
            "num_buckets": 4,
            "hash_seed": 1,
        },
    },
    "ResNetForImageClassification": {
        **dict.fromkeys((*SHAPES, "max_seq_len")),
        "image_size": 32,
        "settings": {"hidden_sizes": [8, 16], "depths": [1, 2], "embedding_size": 8, "layer_type": "basic"},
    },
    "OpenAIGPTLMHeadModel": {"intermediate_size": None},
}


def tiny(architecture: str, **more: Any) -> HuggingFaceConfig:
    values = {**SHAPES, "max_seq_len": LENGTH, **OWN.get(architecture, {}), **more}
    values = {key: value for key, value in values.items() if value is not None}
    return HuggingFaceConfig(name="huggingface", architecture=architecture, **values)


class RoleHeads:
    """What the objectives of a role put on top."""

    def __init__(self, pairs: bool) -> None:
        self.pairs = pairs

    def heads(self, model: Any, layers: Layers) -> Mapping[str, nn.Module]:
        role = model.facts.role
        if role is Role.IMAGE_ENCODER:
            return {"head": model.make_class_head()}
        if role is not Role.TOKEN_ENCODER:
            return {"head": model.make_token_head(layers, np.arange(SIZE - 20))}
        heads = {"head": model.make_masked_head(layers, np.arange(SIZE - 20))}
        return {**heads, "pair_head": model.make_pair_head()} if self.pairs else heads


def built(config: HuggingFaceConfig, seed: int = 1, pairs: bool = True) -> Any:
    """pairs: whether the objective trains the class's head for pairs, where it has one."""
    facts = facts_of(config.architecture)
    vocabulary = IMAGES if facts.role is Role.IMAGE_ENCODER else TEXT
    heads: Any = RoleHeads(pairs and facts.pair_logits is not None)
    model = attach_heads(build_model(config, vocabulary, PlainLayers()), heads, PlainLayers())
    model.initialize(seed)
    return model


def inputs(role: Role, batch: int = 2, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    """Without padding, one document a row, under the names of our models' arguments."""
    rng = np.random.default_rng(seed)
    if role is Role.IMAGE_ENCODER:
        return {"images": torch.from_numpy(rng.standard_normal((batch, 3, 32, 32)).astype(np.float32))}

    def ids() -> Tensor:
        return torch.from_numpy(rng.integers(7, SIZE - 20, (batch, length)))

    if role is Role.ENCODER_DECODER:
        return {"inputs": ids(), "targets": ids()}
    return {"tokens": ids()}


def loss(model: Any, arguments: Mapping[str, Tensor]) -> Tensor:
    """Of every position, as the role's objective makes it."""
    hidden = model(**arguments)
    if model.facts.role is Role.IMAGE_ENCODER:
        return torch.nn.functional.cross_entropy(model.head(hidden), torch.arange(len(hidden)) % IMAGES.classes)
    labels = next(reversed(arguments.values()))
    if model.facts.role is not Role.TOKEN_ENCODER:
        return model.head(hidden, labels)
    positions = torch.arange(labels.shape[1]).expand_as(labels)
    total = model.head(hidden, positions, labels.masked_fill(positions % 3 > 0, IGNORED))
    if "pair_head" not in model.head_names:
        return total
    return total + torch.nn.functional.cross_entropy(model.pair_head(hidden), torch.arange(len(hidden)) % 2)
