"""BERT: an encoder with segments, a pooler, a masked-token head and a pair head.

As published (Devlin et al. 2018, "BERT", section 3; google-research/bert, modeling.py and run_pretraining.py), or by
an option with pre-norm blocks (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture").
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_pipeline.common.errors import InputError
from pretraining.hub.weight_map import WeightMap, vocabulary
from pretraining.models.base import padded_vocabulary
from pretraining.models.bert.config import BertConfig
from pretraining.models.layers import Attention, Dropout, FeedForward, TokenHead, document_mask, initialize, make_norm
from pretraining.parallel.layers import Layers

SEGMENTS = 2
MASKED_SHARE = 0.15  # of the tokens pass the head: Devlin et al. 2018, section 3.1


class Block(nn.Module):
    def __init__(self, config: BertConfig, layers: Layers) -> None:
        super().__init__()
        size = config.hidden_size
        self.post_norm = config.norm_position == "post"
        self.attention = Attention(layers, size, config.num_heads, dropout=config.dropout)
        self.attention_norm = layers.mark_sequence_parallel(make_norm("layernorm", size, config.norm_eps))
        self.mlp = FeedForward(layers, size, config.mlp_size, "gelu")
        self.mlp_norm = layers.mark_sequence_parallel(make_norm("layernorm", size, config.norm_eps))
        self.dropout = Dropout(layers, config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.post_norm:
            x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
            return self.mlp_norm(x + self.dropout(self.mlp(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class MaskedHead(nn.Module):
    """Losses or logits of the masked positions alone: transform, gelu, norm, then the tied decoder with a bias."""

    def __init__(self, config: BertConfig, vocab_size: int, layers: Layers, embedding: Any) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = make_norm("layernorm", config.hidden_size, config.norm_eps)
        self.decoder = TokenHead(layers, vocab_size, embedding.weight, bias=True)

    def forward(self, hidden: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """hidden: [batch, length, hidden]; positions, labels: int [batch, predictions], labels IGNORED where there is
        none -> sum of the losses, fp32 scalar."""
        return self.decoder(self._features(hidden, positions), labels)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """-> [batch, predictions, vocabulary]."""
        return self.decoder.logits(self._features(hidden, positions))

    def _features(self, hidden: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return self.norm(F.gelu(self.transform(hidden[rows, positions])))


class PairHead(nn.Module):
    """How two segments belong together, from the pooled first token: 0 as in the text, 1 otherwise."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [batch, length, hidden] -> logits [batch, 2]."""
        return self.classifier(torch.tanh(self.pooler(hidden[:, 0])))


class BERT(nn.Module):
    """tokens: int [batch, length] -> hidden states [batch, length, hidden].

    `head` makes losses or logits of masked positions, `pair_head` logits of the pairs.
    """

    def __init__(self, config: BertConfig, vocab_size: int, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocab_size, layers
        size = config.hidden_size
        self.token_embedding = layers.embedding(padded_vocabulary(vocab_size), size)
        self.position_embedding = nn.Embedding(config.max_seq_len, size)
        self.segment_embedding = nn.Embedding(SEGMENTS, size)
        self.embedding_norm = make_norm("layernorm", size, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layers) for _ in range(config.num_layers))
        norm = make_norm("layernorm", size, config.norm_eps)
        self.final_norm = layers.mark_sequence_parallel(norm) if config.norm_position == "pre" else None
        self.head = MaskedHead(config, vocab_size, layers, self.token_embedding)
        self.pair_head = PairHead(size)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """segments: [batch, length], 0 or 1 (None: all 0). positions: [batch, length] (None: 0, 1, ...).

        documents: [batch, length]: a token attends to those of its own number alone; padding has a number that no
        token has (None: one document a row, no padding).
        """
        segments = torch.zeros_like(tokens) if segments is None else segments
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.token_embedding(tokens) + self.position_embedding(positions) + self.segment_embedding(segments)
        x = self.layers.scatter_to_sequence_region(self.dropout(self.embedding_norm(x)))
        mask = None if documents is None else document_mask(documents, causal=False)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.layers.gather_from_sequence_region(x if self.final_norm is None else self.final_norm(x))

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token: 6 per weight used, and attention's 12 x layers x hidden x length
        (Chowdhery et al. 2022, "PaLM", appendix B). The head counts for the masked share of the tokens."""
        config = self.config
        size = config.hidden_size
        blocks = config.num_layers * (4 * size * size + 2 * size * config.mlp_size)
        head = MASKED_SHARE * (size * size + self.vocab_size * size)
        return 6.0 * (blocks + head) + 12.0 * config.num_layers * size * length

    def published_parameters(self) -> int:
        """Parameters without the padded entries of the vocabulary: a row and a bias each."""
        padding = padded_vocabulary(self.vocab_size) - self.vocab_size
        return sum(p.numel() for p in self.parameters()) - padding * (self.config.hidden_size + 1)

    def initialize(self, seed: int) -> None:
        """Normal with standard deviation 0.02, cut at two of them, biases 0 (modeling.py, create_initializer: TF's
        truncated_normal). Padded vocabulary rows are 0."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if tensor.ndim == 1:
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            return
        std = self.config.initializer_range
        nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std, generator=generator)
        if name == "token_embedding.weight":
            tensor[self.vocab_size :] = 0.0


def huggingface_config(config: BertConfig, vocab_size: int, special_ids: dict[str, int]) -> dict[str, Any]:
    """The values of transformers' config.json. special_ids: name -> id, of which `pad` is told.

    Raises InputError for pre-norm, which transformers' BERT does not have.
    """
    if config.norm_position != "post":
        raise InputError("model.norm_position=pre: Hugging Face's BERT has post-norm alone")
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_seq_len,
        "type_vocab_size": SEGMENTS,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_eps,
        "pad_token_id": special_ids["pad"],
        "tie_word_embeddings": True,
    }


def from_huggingface_config(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of our config that a transformers config.json decides. Raises InputError for what BERT here lacks."""
    wanted = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "type_vocab_size": SEGMENTS,
        "tie_word_embeddings": True,
        "is_decoder": False,
        "position_embedding_type": "absolute",
    }
    wrong = [f"{k}={values[k]!r} (only {v!r})" for k, v in wanted.items() if values.get(k, v) != v]
    if wrong:
        raise InputError(f"this Hugging Face model is no BERT of this kind: {', '.join(wrong)}")
    return {
        "name": "bert",
        "num_layers": values["num_hidden_layers"],
        "hidden_size": values["hidden_size"],
        "num_heads": values["num_attention_heads"],
        "intermediate_size": values["intermediate_size"],
        "max_seq_len": values["max_position_embeddings"],
        "vocab_size": values["vocab_size"],
        "norm_position": "post",
        "norm_eps": values.get("layer_norm_eps", 1e-12),
    }


def weight_map(config: BertConfig, vocab_size: int) -> list[WeightMap]:
    """Every tensor of ours and its name in BertForPreTraining; tied tensors once."""
    maps = [
        vocabulary("token_embedding.weight", "bert.embeddings.word_embeddings.weight", vocab_size),
        WeightMap("position_embedding.weight", "bert.embeddings.position_embeddings.weight"),
        WeightMap("segment_embedding.weight", "bert.embeddings.token_type_embeddings.weight"),
        vocabulary("head.decoder.bias", "cls.predictions.bias", vocab_size),
    ]
    modules = {
        "embedding_norm": "bert.embeddings.LayerNorm",
        "head.transform": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "pair_head.pooler": "bert.pooler.dense",
        "pair_head.classifier": "cls.seq_relationship",
    }
    for i in range(config.num_layers):
        modules |= {f"blocks.{i}.{ours}": f"bert.encoder.layer.{i}.{theirs}" for ours, theirs in BLOCK_MAP.items()}
    return maps + [
        WeightMap(f"{ours}.{kind}", f"{theirs}.{kind}")
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    ]


BLOCK_MAP = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
