"""What a loss asks of the model that it trains, role by role: a model of models/base.py and, on it, the heads that the
objective itself put there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pretraining.models.base import (
    BidirectionalDecoder,
    Decoder,
    EncoderDecoder,
    GeneratorDiscriminator,
    ImageEncoder,
    PermutedEncoder,
    RecurrentDecoder,
    TokenEncoder,
)

if TYPE_CHECKING:
    from torch import Tensor


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


class SamplingMaskedHead(Protocol):
    def __call__(self, hidden: Tensor, positions: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """As MaskedHead; keys: int64 [batch, predictions] -> the sum of the losses, and int64 [batch, predictions]: for
        each key a token drawn from the softmax, without a gradient."""
        ...


class Classifier(Protocol):
    def __call__(self, features: Tensor) -> Tensor:
        """-> logits [batch, classes]."""
        ...


class DecoderWithHead(Decoder, Protocol):
    head: VocabularyHead


class RecurrentDecoderWithHead(RecurrentDecoder, Protocol):
    head: VocabularyHead


class BidirectionalDecoderWithHead(BidirectionalDecoder, Protocol):
    head: VocabularyHead


class PermutedEncoderWithHead(PermutedEncoder, Protocol):
    head: VocabularyHead


class TokenEncoderWithHeads(TokenEncoder, Protocol):
    head: MaskedHead
    pair_head: Classifier  # only where there are pairs


class HorizonEncoder(TokenEncoder, Protocol):
    def __call__(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        horizon: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """horizon: the first and the last position of the sequence that each token sees, int [batch, length] each
        (None: all of its document)."""
        ...


class EncoderDecoderWithHead(EncoderDecoder, Protocol):
    head: VocabularyHead


class ImageEncoderWithHead(ImageEncoder, Protocol):
    head: Classifier


class GeneratorDiscriminatorWithHeads(GeneratorDiscriminator, Protocol):
    head: SamplingMaskedHead
    detection_head: Classifier  # [batch, length, hidden] -> [batch, length]
