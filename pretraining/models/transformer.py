"""What the families' modules share of the contract in models/base.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from pretraining.models.blocks import BlockStack, depths_by_name
from pretraining.models.heads import Ids, TokenHead, vocabulary_table
from pretraining.models.vocabulary import padded_vocabulary
from pretraining.parallel.layers import Layers

if TYPE_CHECKING:
    from pretraining.models.base import ShapedTokenModel


class TransformerModel(nn.Module):
    """A family says by `block_stacks` where its parameters lie; depths follow from that, whatever their names."""

    layers: Layers
    head_names: tuple[str, ...] = ()

    def block_stacks(self) -> Sequence[BlockStack]:
        raise NotImplementedError

    def parameter_depths(self) -> dict[str, int]:
        return depths_by_name(self, self.block_stacks(), [self.get_submodule(name) for name in self.head_names])

    def decays(self, name: str) -> bool:
        """Biases, norms and single tokens have one dimension."""
        return self.get_parameter(name).ndim > 1

    def padded_rows(self, name: str) -> int:
        return 0

    def published_parameters(self) -> int:
        padded = {id(p): self.padded_rows(name) * p[0].numel() for name, p in self.named_parameters() if p.ndim}
        return sum(p.numel() - padded.get(id(p), 0) for p in self.parameters())


class TextModel(TransformerModel):
    """A family whose tokens enter through `token_embedding`."""

    vocab_size: int
    tie_embeddings: bool = True
    head_bias: bool = False
    token_embedding: nn.Module

    def make_token_head(
        self, layers: Layers, used: Ids | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0
    ) -> TokenHead:
        model = cast("ShapedTokenModel", self)
        table = vocabulary_table(model, layers)
        return TokenHead(layers, self.vocab_size, table, self.head_bias, used, z_loss, label_smoothing)

    def padded_rows(self, name: str) -> int:
        """Those of the embedding and of the heads that project to the vocabulary."""
        heads = [module for module in self.modules() if isinstance(module, TokenHead)]
        tables = (self.token_embedding.get_parameter("weight"), *(p for head in heads for p in head.parameters()))
        is_table = any(table is self.get_parameter(name) for table in tables)
        return padded_vocabulary(self.vocab_size) - self.vocab_size if is_table else 0
