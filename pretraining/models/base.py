"""The contract of a model: what objectives, engines, optimizers and the hub may ask of it. Free of torch.

A model is a torch module, built empty by `models.registry.build_model`, given its heads by `models.heads.attach_heads`,
and then filled by `initialize`. It is written once, on a `Layers` object, and does not know how it is sharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pretraining.models.config import ModelConfig, TransformerConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from pretraining.models.blocks import BlockStack
    from pretraining.parallel.layers import Layers

    Ids = npt.NDArray[np.int64]


class Model(Protocol):
    """What every family has. Parameters' names are those of checkpoints, and initial weights are drawn by name."""

    layers: Layers  # what it is built from
    head_names: tuple[str, ...]  # the attributes that attach_heads set
    training: bool

    @property
    def config(self) -> ModelConfig: ...

    def block_stacks(self) -> Sequence[BlockStack]:
        """Its stacks of blocks, in the order in which a batch meets them, each with what lies below and above it."""
        ...

    def parameter_depths(self) -> Mapping[str, int]:
        """How many layers lie above each parameter, heads included: 0 for heads and final norms, 1 for the last block,
        the number of blocks + 1 for what the first one reads. Optimizers refuse by name what it leaves out."""
        ...

    def decays(self, name: str) -> bool:
        """Whether weight decay and trust ratios apply to this parameter: not to biases, norms and single tokens."""
        ...

    def padded_rows(self, name: str) -> int:
        """How many of the last rows of this whole parameter are padding of the vocabulary: always 0, and no part of
        what is published."""
        ...

    def initialize(self, seed: int) -> None:
        """Fills every parameter. Weights depend on the seed and the parameter's name alone."""
        ...

    def published_parameters(self) -> int:
        """How many parameters it has, as papers count: without the padded entries of the vocabulary."""
        ...

    # torch.nn.Module's own
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def to(self, device: torch.device) -> object: ...
    def train(self, mode: bool = True) -> object: ...
    def eval(self) -> object: ...


class TokenModel(Model, Protocol):
    """A model of token ids."""

    vocab_size: int  # without padding
    tie_embeddings: bool  # the head projects with the embedding's table
    token_embedding: nn.Module  # its weight: [padded vocabulary, hidden], or this rank's rows

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token in sequences of `length` tokens, head included."""
        ...

    def make_token_head(
        self, layers: Layers, used: Ids | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0
    ) -> nn.Module:
        """A VocabularyHead of objectives.models, still empty: every position predicts a token.

        used: ascending ids that take part in the softmax, None for all. z_loss, label_smoothing: see
        models.loss.VocabularyLoss; in training alone.
        """
        ...


class Decoder(TokenModel, Protocol):
    """Role.DECODER: a token sees those before it."""

    def __call__(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """tokens, positions, documents: int [batch, length] -> hidden states [batch, length, hidden].

        positions: within the document (None: 0, 1, ...). documents: which packed document a token belongs to; no
        attention crosses their borders (None: one document a row).
        """
        ...


class RecurrentDecoder(TokenModel, Protocol):
    """Role.RECURRENT_DECODER: a token sees those before it, across the segments that the model still remembers."""

    def __call__(self, tokens: Tensor, documents: Tensor | None, segment: int, warm: int = 0) -> Tensor:
        """tokens, documents: int [batch, length], read in segments of `segment` tokens, the last one may be shorter ->
        hidden states [batch, length - warm x segment, hidden].

        documents: as in Decoder. warm: the first segments, which only make memory, without a gradient and an output.
        """
        ...

    def flops_of_segments(self, segment: int, warm: int, trained: int) -> float:
        """Forward and backward of one sample of warm + trained segments, head included."""
        ...


class TokenEncoder(TokenModel, Protocol):
    """Role.TOKEN_ENCODER: a token sees all of its document."""

    @property
    def horizon_segments(self) -> int:
        """How many segments it tells apart where tokens see only a part of their document, as a HorizonEncoder of
        objectives.models; 0 for a model that has no horizons."""
        ...

    def __call__(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """All int [batch, length] -> hidden states [batch, length, hidden].

        segments: 0 or 1 (None: all 0). positions, documents: as in Decoder; padding has a document number of its own.
        """
        ...

    def make_masked_head(self, layers: Layers, used: Ids | None = None, z_loss: float = 0.0) -> nn.Module:
        """A MaskedHead of objectives.models, still empty. used, z_loss: as in make_token_head."""
        ...

    def make_pair_head(self) -> nn.Module:
        """hidden states -> logits [batch, 2] of how two segments belong together, still empty."""
        ...


class BidirectionalDecoder(Model, Protocol):
    """Role.BIDIRECTIONAL_DECODER: two decoders, of which one sees the tokens before, the other those after."""

    def __call__(self, characters: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """characters: int [batch, length, characters], those that spell each token, see models.elmo.characters;
        documents: int [batch, length], which packed document a token belongs to -> the hidden states of either
        direction, [batch, length, hidden]; a token sees itself and its document."""
        ...

    def make_direction_head(self, layers: Layers, used: Ids | None = None) -> nn.Module:
        """A VocabularyHead of objectives.models for both directions, still empty. used: as in make_token_head."""
        ...

    def flops_per_token(self, characters: int) -> float:
        """Forward and backward of one token of so many characters, both heads included."""
        ...


class PermutedEncoder(TokenModel, Protocol):
    """Role.PERMUTED_ENCODER: tokens see each other in a factorization order, and queries see them without their own."""

    def __call__(
        self, tokens: Tensor, segments: Tensor, places: Tensor, ranks: Tensor, targets: Tensor, reuse: int, warm: int
    ) -> Tensor:
        """tokens, segments, places, ranks: int [batch, warm x reuse + length]; targets: int [batch, predictions], in
        the sequence after the warm parts -> hidden states [batch, predictions, hidden].

        places: of a token as a key, -1 where all see it. ranks: of a token as a query, which sees keys of lower places.
        reuse: tokens of a warm part, and of the sequence's first part, which sees nothing of the rest. warm: parts that
        only make memory, without a gradient.
        """
        ...

    def flops_of_sample(self, length: int, targets: int, reuse: int, warm: int) -> float:
        """Forward and backward of one sample, head included."""
        ...


class EncoderDecoder(TokenModel, Protocol):
    """Role.ENCODER_DECODER: reads one sequence, writes another."""

    def __call__(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_documents: Tensor | None = None,
        target_documents: Tensor | None = None,
    ) -> Tensor:
        """inputs: int [batch, read]; targets: int [batch, written], shifted right -> the decoder's hidden states
        [batch, written, hidden].

        *_documents: which packed document a token belongs to, -1 for padding; a token sees its own document alone, in
        the encoder, in the decoder and across (None: one document a row, no padding).
        """
        ...


class GeneratorDiscriminator(TokenModel, Protocol):
    """Role.GENERATOR_DISCRIMINATOR: two token encoders over one table of embeddings. Arguments as in TokenEncoder."""

    def generate(self, tokens: Tensor, segments: Tensor, positions: Tensor, documents: Tensor | None = None) -> Tensor:
        """-> the generator's hidden states [batch, length, its hidden size]."""
        ...

    def discriminate(
        self, tokens: Tensor, segments: Tensor, positions: Tensor, documents: Tensor | None = None
    ) -> Tensor:
        """-> the discriminator's hidden states [batch, length, hidden]."""
        ...

    def make_generator_head(self, layers: Layers, used: Ids | None = None) -> nn.Module:
        """A SamplingMaskedHead of objectives.models, still empty. used: as in make_token_head."""
        ...

    def make_detection_head(self) -> nn.Module:
        """The discriminator's hidden states -> logits [batch, length] of whether a token was replaced, still empty."""
        ...


class ImageEncoder(Model, Protocol):
    """Role.IMAGE_ENCODER: an image as one vector."""

    num_classes: int  # of the prepared data

    def __call__(self, images: Tensor) -> Tensor:
        """images: [batch, 3, image_size, image_size], normalized -> features [batch, hidden]."""
        ...

    def make_class_head(self) -> nn.Module:
        """features -> logits [batch, classes], still empty."""
        ...

    def flops_per_image(self) -> float:
        """Forward and backward of one image, head included."""
        ...


class ShapedTokenModel(TokenModel, Protocol):
    """What the heads of models/heads.py are made for: a model that states its width."""

    @property
    def config(self) -> TransformerConfig: ...


class ShapedImageEncoder(ImageEncoder, Protocol):
    """The same of images."""

    @property
    def config(self) -> TransformerConfig: ...


class MaskedImageAutoencoder(Model, Protocol):
    """Role.MASKED_IMAGE_AUTOENCODER: some patches in, the pixels of all out."""

    def __call__(self, images: Tensor, visible: Tensor) -> Tensor:
        """images: [batch, 3, image_size, image_size], normalized; visible: int [batch, kept], the patches that the
        encoder sees -> pixels of every patch, [batch, patches, 3 x patch_size x patch_size]."""
        ...

    def flops_per_image(self, kept: int) -> float:
        """Forward and backward of one image of which `kept` patches are encoded."""
        ...
