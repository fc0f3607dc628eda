"""XLNet's Hugging Face counterpart: XLNetLMHeadModel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data_pipeline.tokenizers.export import Frame
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_rows, require_model_type
from pretraining.models.weight_map import WeightMap, vocabulary, with_and_without, with_parts
from pretraining.models.xlnet.model import BIASES, XLNet

LM_HEAD = ConfigMap(
    architecture="XLNetLMHeadModel",
    model_type="xlnet",
    keys=[
        Key("num_layers", "n_layer"),
        Key("hidden_size", "d_model"),
        Key("num_heads", "n_head"),
        Key("intermediate_size", "d_inner", resolved="mlp_size"),
        Key("norm_eps", "layer_norm_eps", default=1e-12),
    ],
    only={"ff_activation": ("gelu",), "attn_type": ("bi",), "clamp_len": (-1,), "same_length": (False,)},
    checked={"untie_r": (True,), "tie_word_embeddings": (True,), "bi_data": (False,)},
    written={"dropout": "dropout", "initializer_range": "initializer_range", "mem_len": "memory"},
    ours={"name": "xlnet"},
)
architectures = (LM_HEAD.architecture,)
frame = Frame("$A sep cls:2", "$A sep $B:1 sep:1 cls:2", token_types=True, pads_left=True)
PROBED = 5  # targets of a probe


def huggingface_config(model: XLNet, special_ids: Mapping[str, int]) -> Values:
    return {
        **LM_HEAD.export(model.config),
        "vocab_size": model.vocab_size,
        # else transformers takes the published model's 1, 2 and 5
        **{f"{role}_token_id": special_ids[role] for role in ("bos", "eos", "pad") if role in special_ids},
        "untie_r": True,
    }


def from_huggingface_config(values: Values) -> Values:
    require_model_type(values, "xlnet", ("xlnet",))
    return {**LM_HEAD.restore(values), "vocab_size": values["vocab_size"]}


def weight_map(model: XLNet) -> list[WeightMap]:
    size, heads = model.config.hidden_size, model.config.num_heads
    split = (size, heads, size // heads)

    def projected(ours: str, theirs: str) -> WeightMap:
        """Ours is [heads x head size, in], theirs [in, heads, head size]."""
        return WeightMap(ours, theirs, lambda t: t.T.reshape(split), lambda t: t.reshape(size, size).T.contiguous())

    def back(ours: str, theirs: str) -> WeightMap:
        """Ours is [out, heads x head size], theirs [out, heads, head size]."""
        return WeightMap(ours, theirs, lambda t: t.reshape(split), lambda t: t.reshape(size, size))

    def whole(tensor: Tensor) -> Tensor:
        return tensor.reshape(1, 1, -1)

    entries = [
        vocabulary("token_embedding.weight", "transformer.word_embedding.weight", model.vocab_size),
        vocabulary("head.bias", "lm_loss.bias", model.vocab_size),
        WeightMap("query_embedding", "transformer.mask_emb", whole, lambda t: t.reshape(-1)),
    ]
    for i in range(model.config.num_layers):
        ours, theirs = f"blocks.{i}", f"transformer.layer.{i}"
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("position", "r")):
            entries.append(projected(f"{ours}.attention.{name}.weight", f"{theirs}.rel_attn.{letter}"))
        entries.append(back(f"{ours}.attention.output.weight", f"{theirs}.rel_attn.o"))
        for name, letter in zip(BIASES, "wrs", strict=True):
            entries.append(WeightMap(f"{ours}.attention.{name}", f"{theirs}.rel_attn.r_{letter}_bias"))
        entries.append(WeightMap(f"{ours}.attention.segment_embedding", f"{theirs}.rel_attn.seg_embed"))
        for name, part in (
            ("attention_norm", "rel_attn.layer_norm"),
            ("mlp.up", "ff.layer_1"),
            ("mlp.down", "ff.layer_2"),
            ("mlp_norm", "ff.layer_norm"),
        ):
            entries += with_parts(f"{ours}.{name}", f"{theirs}.{part}")
    return entries


def spellings(name: str) -> list[str]:
    return with_and_without(name, "transformer")


def probe_inputs(model: XLNet, rng: np.random.Generator) -> list[Inputs]:
    """Random orders in which some tokens are predicted; two segments in every row."""
    return [_permuted(row, rng) for row in probe_rows(model.config.max_seq_len, model.vocab_size, rng)]


def probe_outputs(model: XLNet, inputs: Inputs, values: Values) -> Inputs:
    allowed, targets = inputs["perm_mask"] < 0.5, inputs["target_mapping"].argmax(-1)
    return {"logits": model.head.logits(model.attend(inputs["input_ids"], inputs["token_type_ids"], allowed, targets))}


def _permuted(row: Tensor, rng: np.random.Generator) -> Inputs:
    """row: int [1, length]. The first tokens of the order are seen by all and predict nothing: transformers lets a
    target that sees nothing see everything."""
    length = row.shape[1]
    order = torch.from_numpy(rng.permutation(length))
    count = min(PROBED, length - 1)
    rank = torch.empty(length, dtype=torch.int64)
    rank[order] = torch.arange(length)
    late = rank >= length - count
    blocked = (rank[:, None] <= rank) & late  # by query, by key
    mapping = torch.nn.functional.one_hot(order[length - count :], length).float()
    return {
        "input_ids": row,
        "token_type_ids": (torch.arange(length) > length // 2).long()[None],
        "perm_mask": blocked.float()[None],
        "target_mapping": mapping[None],
    }
