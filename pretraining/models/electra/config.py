"""The shapes and options of ELECTRA, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Positive, PositiveFloat, configclass
from pretraining.models.bert.config import BertConfig
from pretraining.models.config import TextConfig, without_tensor_parallelism

GENERATOR_HEAD_SIZE = 64
SEGMENTS = 2


@configclass
class ElectraConfig(TextConfig):
    """A small generator and a discriminator over one table of embeddings. num_layers, hidden_size, num_heads and
    intermediate_size are the discriminator's.

    embedding_size: features of a token in the shared embeddings; each of the two encoders of another size projects
        them.
    generator_hidden_size: features of a token between the generator's blocks.
    generator_num_layers: the generator's blocks; null means num_layers.
    generator_num_heads: the generator's attention heads; null means one for each 64 features, and at least one.
    generator_intermediate_size: features within a feed-forward of the generator; null means 4 x generator_hidden_size.
    initializer_range: standard deviation of the initial weights.
    """

    name: Literal["electra"]
    embedding_size: Positive
    generator_hidden_size: Positive
    _: KW_ONLY
    generator_num_layers: Positive | None = None
    generator_num_heads: Positive | None = None
    generator_intermediate_size: Positive | None = None
    norm_eps: PositiveFloat = 1e-12
    initializer_range: PositiveFloat = 0.02

    @property
    def generator_heads(self) -> int:
        """generator_num_heads, with null resolved."""
        return self.generator_num_heads or max(1, self.generator_hidden_size // GENERATOR_HEAD_SIZE)

    @property
    def generator_layers(self) -> int:
        """generator_num_layers, with null resolved."""
        return self.generator_num_layers or self.num_layers

    @property
    def generator_mlp_size(self) -> int:
        """generator_intermediate_size, with null resolved."""
        return self.generator_intermediate_size or 4 * self.generator_hidden_size

    def generator(self) -> BertConfig:
        """The shape of the generator's blocks."""
        return self._blocks(
            self.generator_layers, self.generator_hidden_size, self.generator_heads, self.generator_mlp_size
        )

    def discriminator(self) -> BertConfig:
        """The shape of the discriminator's blocks."""
        return self._blocks(self.num_layers, self.hidden_size, self.num_heads, self.mlp_size)

    def problems(self) -> list[str]:
        problems = TextConfig.problems(self)
        if self.generator_hidden_size % self.generator_heads:
            problems.append(
                f"model.generator_hidden_size={self.generator_hidden_size} is not divisible by the generator's "
                f"{self.generator_heads} heads: set model.generator_num_heads"
            )
        return problems

    def layout_problems(self, engine: str, zero_stage: int, tensor_parallel: int) -> list[str]:
        return without_tensor_parallelism(self.name, tensor_parallel, "tokens are drawn from the whole vocabulary")

    def _blocks(self, num_layers: int, hidden_size: int, num_heads: int, mlp_size: int) -> BertConfig:
        return BertConfig(
            "bert",
            num_layers,
            hidden_size,
            num_heads,
            self.max_seq_len,
            intermediate_size=mlp_size,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            mlp_dropout=self.mlp_dropout,
        )
