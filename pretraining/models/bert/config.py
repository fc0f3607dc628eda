"""The shapes and options of BERT, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.common.fields import Fraction, Positive, PositiveFloat, configclass
from pretraining.models.base import head_faults


@configclass
class BertConfig:
    """An encoder with two segments, a pooler, and heads for masked tokens and for pairs of segments.

    vocab_size and intermediate_size: as in GPTConfig. norm_position: post is the published one; pre normalizes what
    enters a sublayer, and once more at the end (Xiong et al. 2020).
    """

    name: Literal["bert"]
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    max_seq_len: Positive
    vocab_size: Positive | None = None
    intermediate_size: Positive | None = None
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: PositiveFloat = 1e-12
    dropout: Fraction = 0.0
    initializer_range: PositiveFloat = 0.02
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    def faults(self) -> list[str]:
        return head_faults(self.hidden_size, self.num_heads)

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.bert.model import BERT

        return BERT(self, vocab_size, layers)
