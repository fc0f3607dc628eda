"""What the configs of all families share; free of torch, so that a config error is reported at once."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, Literal

from data_pipeline.common.fields import Fraction, PathText, Positive, PositiveFloat, configclass, unused_with
from pretraining.models.roles import Role


@configclass
class ModelConfig:
    """What every family's config has.

    activation_checkpointing: compute each block again in the backward pass instead of keeping its activations.
    init_from: a Hugging Face folder whose weights a new run starts from.
    """

    name: str
    _: KW_ONLY
    activation_checkpointing: bool = False
    init_from: PathText | None = None

    @property
    def packs_documents(self) -> bool:
        """Whether several documents may share a sequence, with no attention between them."""
        return True

    @property
    def fixed_length(self) -> bool:
        """Whether every sequence must have the model's greatest length."""
        return False

    @property
    def longest_targets(self) -> int | None:
        """The most tokens that a decoder can write; None where there is none, or where its positions never end."""
        return None

    def roles(self, of_family: frozenset[Role]) -> frozenset[Role]:
        """Those of its family's roles that a model of this config plays."""
        return of_family

    def problems(self) -> list[str]:
        """Contradictions between keys, each reported with its values."""
        return []

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides: each must be divisible by the number of ranks."""
        return {}

    def layout_problems(self, engine: str, zero_stage: int, tensor_parallel: int) -> list[str]:
        """Why the model does not run under this layout: one that is not proven is refused by name, with the reason.

        engine: engine.name. zero_stage: 0 to 3, 0 where the engine has none.
        """
        return []

    def accumulation_problems(self, micro_batches: int) -> list[str]:
        """Why a step of so many micro-batches on each rank is not that of the whole batch at once."""
        return []

    def stated_outputs(self) -> dict[str, int]:
        """The key that states how many tokens or classes are predicted, if one does: the prepared data must agree."""
        return {}


@configclass
class TransformerConfig(ModelConfig):
    """The shape of a stack of blocks, and how it is run.

    num_layers: blocks of a stack.
    hidden_size: features of a token or a patch between the blocks.
    num_heads: attention heads of a block.
    intermediate_size: features within a block's feed-forward; null means 4 x hidden_size.
    norm_eps: added to the variance in every norm.
    dropout: rate after embeddings, attention and feed-forward.
    attention_dropout: rate of attention's weights; null takes what the family was published with: none in images'
        models and the Transformer of 2017, dropout in all others.
    mlp_dropout: rate between a feed-forward's activation and its last layer; null takes what the family was published
        with: dropout in T5 and in images' models, none in others.
    """

    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    _: KW_ONLY
    intermediate_size: Positive | None = None
    norm_eps: PositiveFloat = 1e-6
    dropout: Fraction = 0.0
    attention_dropout: Fraction | None = None
    mlp_dropout: Fraction | None = None

    @property
    def mlp_size(self) -> int:
        """intermediate_size, with null resolved."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def attention_dropout_rate(self) -> float:
        """attention_dropout, with null resolved."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def mlp_dropout_rate(self) -> float:
        """mlp_dropout, with null resolved."""
        return 0.0 if self.mlp_dropout is None else self.mlp_dropout

    def problems(self) -> list[str]:
        if self.hidden_size % self.num_heads == 0:
            return []
        return [f"model.hidden_size={self.hidden_size} is not divisible by model.num_heads={self.num_heads}"]

    def split_over_ranks(self) -> dict[str, int]:
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}


@configclass
class TextConfig(TransformerConfig):
    """A model of token ids.

    max_seq_len: the most tokens that the model reads at once.
    vocab_size: null takes that of the prepared data; a number must agree with it.
    new_rows: lets the run have another tokenizer than the folder of init_from: pieces that both know keep their rows,
        the others' are drawn as a new model's (normal), or are the mean of the rows of the pieces that the folder's
        tokenizer makes of their text (mean); null refuses such a tokenizer.
    """

    max_seq_len: Positive
    _: KW_ONLY
    vocab_size: Positive | None = None
    new_rows: Annotated[Literal["normal", "mean"] | None, unused_with("init_from", None)] = None

    def accumulation_problems(self, micro_batches: int) -> list[str]:
        """Why a step of so many micro-batches on each rank is not that of the whole batch at once."""
        return []

    def stated_outputs(self) -> dict[str, int]:
        return {} if self.vocab_size is None else {"model.vocab_size": self.vocab_size}


def without_tensor_parallelism(name: str, tensor_parallel: int, reason: str) -> list[str]:
    """`layout_problems` of a family that is proven under every other layout. reason: what is in the way."""
    if tensor_parallel == 1:
        return []
    return [
        f"model.name={name} does not run with engine.tensor_parallel={tensor_parallel}, only with 1: {reason}. DDP and "
        "ZeRO 0 to 3 are proven for it"
    ]
