"""What an objective asks of the model that it trains, role by role (see pretraining.models.roles): the model with the
heads that the objective put on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class Module(Protocol):
    """What every model has from nn.Module."""

    training: bool

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> object: ...


class VocabularyHead(Protocol):
    def __call__(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden: [..., features]; labels: int [...], IGNORED where there is none -> sum of the losses, fp32 scalar."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """-> [..., vocabulary]."""
        ...


class MaskedHead(Protocol):
    def __call__(self, hidden: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """hidden: [batch, length, features]; positions, labels: int [batch, predictions], labels IGNORED where there
        is none -> sum of the losses, fp32 scalar."""
        ...

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """-> [batch, predictions, vocabulary]."""
        ...


class Classifier(Protocol):
    def __call__(self, features: Tensor) -> Tensor:
        """-> logits [batch, classes]."""
        ...


class DecoderWithHead(Module, Protocol):
    head: VocabularyHead

    def __call__(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Each int [batch, length] -> [batch, length, features]; no token sees a later one or another document."""
        ...

    def flops_per_token(self, length: int) -> float: ...


class TokenEncoderWithHeads(Module, Protocol):
    head: MaskedHead
    pair_head: Classifier

    def __call__(self, tokens: Tensor, segments: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """Each int [batch, length] -> [batch, length, features]; a token sees all of its own document."""
        ...

    def flops_per_token(self, length: int) -> float: ...


class EncoderDecoderWithHead(Module, Protocol):
    head: VocabularyHead

    def __call__(
        self,
        inputs: Tensor,
        decoder_inputs: Tensor,
        input_documents: Tensor | None = None,
        target_documents: Tensor | None = None,
    ) -> Tensor:
        """Int [batch, read] and [batch, written] -> [batch, written, features]."""
        ...

    def flops_per_token(self, length: int) -> float: ...


class ImageEncoderWithHead(Module, Protocol):
    head: Classifier

    def __call__(self, images: Tensor) -> Tensor:
        """images: fp32 [batch, 3, size, size], normalized -> [batch, features]."""
        ...

    def flops_per_image(self) -> float: ...


class MaskedImageAutoencoder(Module, Protocol):
    def __call__(self, images: Tensor, visible: Tensor) -> Tensor:
        """visible: int [batch, kept], the patches that the encoder sees -> the pixels of every patch,
        [batch, patches, 3 x patch_size x patch_size]."""
        ...

    def flops_per_image(self, kept: int) -> float: ...
