"""Classes of transformers in the roles that objectives ask for. Their parameters keep transformers' names.

The last projection to the vocabulary is not computed by the class: a head of ours has its weight and bias, and makes
the loss of the features that the projection would read.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.common.errors import InputError
from pretraining.models.attention import document_mask
from pretraining.models.blocks import BlockStack
from pretraining.models.heads import Ids, TokenHead
from pretraining.models.huggingface import structure, tracing
from pretraining.models.huggingface.architectures import facts_of, position_offset
from pretraining.models.huggingface.batch_norm import normalize_globally, running_statistics
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.initialization import initialize_network
from pretraining.models.huggingface.network import empty_network, reading
from pretraining.models.roles import Role
from pretraining.models.transformer import TransformerModel
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers


class Adapter(TransformerModel):
    """network: the class of transformers, its weights still empty. offset: the row of its position table that
    position 0 has."""

    def __init__(self, config: HuggingFaceConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocabulary, self.layers = config, vocabulary, layers
        self.facts = facts_of(config.architecture)
        device = layers.parameter((0,), 0).device  # meta where shapes alone are asked for
        self.network = empty_network(config, vocabulary, device)
        normalize_globally(self.network, layers.batch_group)
        self.accepted = frozenset(inspect.signature(self.network.forward).parameters)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not name.endswith(self.facts.untrained))

    def block_stacks(self) -> Sequence[BlockStack]:
        return structure.block_stacks(self.network, self.facts.early)

    def parameter_depths(self) -> dict[str, int]:
        """Without those of which the structure does not say whether they decay."""
        return {name: depth for name, depth in super().parameter_depths().items() if self._decays(name) is not None}

    def decays(self, name: str) -> bool:
        return bool(self._decays(name))

    def _decays(self, name: str) -> bool | None:
        return True if name.endswith(self.facts.tables) else structure.decays(self, name)

    def published_parameters(self) -> int:
        return super().published_parameters() - sum(p.numel() for p in running_statistics(self.network))

    def initialize(self, seed: int) -> None:
        """As transformers' class does, see initialize_network; padded and unused rows of the vocabulary are 0."""
        initialize_network(self.network, self.layers, seed, self._zero_rows())

    def _zero_rows(self) -> dict[str, list[slice]]:
        return {}


class TextAdapter(Adapter):
    """What roles on tokens share."""

    def __init__(self, config: HuggingFaceConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__(config, vocabulary, layers)
        self.vocab_size = vocabulary.size
        self.offset = position_offset(config.architecture, vocabulary)

    @property
    def token_embedding(self) -> nn.Module:
        return self.network.get_input_embeddings()

    @property
    def tie_embeddings(self) -> bool:
        return self._projection.weight is self.token_embedding.weight

    @property
    def _projection(self) -> nn.Module:
        return self.network.get_output_embeddings()

    def make_token_head(
        self, layers: Layers, used: Ids | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0
    ) -> TokenHead:
        parameters = dict(self._projection.named_parameters())
        head = TokenHead(
            layers, self.vocab_size, parameters["weight"], used=used, z_loss=z_loss, label_smoothing=label_smoothing
        )
        head.bias = parameters.get("bias")
        return head

    def padded_rows(self, name: str) -> int:
        parameter = self.get_parameter(name)
        return len(parameter) - self.vocab_size if any(parameter is table for table in self.vocabulary_tables()) else 0

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token, see tracing.forward_flops; the backward takes twice the forward."""
        return 3.0 * tracing.forward_flops_per_token(self.config, self.vocabulary, length)

    def vocabulary_tables(self) -> list[nn.Parameter]:
        """What has a row, or an entry, for each token."""
        body = set(self.network.base_model.parameters())
        size = padded_vocabulary(self.vocab_size)
        others = [p for p in self.network.parameters() if p not in body and p.shape[:1] == (size,)]  # Reformer's bias
        return [*self.token_embedding.parameters(), *self._projection.parameters(), *others]

    def _zero_rows(self) -> dict[str, list[slice]]:
        unused = {rows for head in self.modules() if isinstance(head, TokenHead) for rows in head.unused}
        rows = [slice(self.vocab_size, None), *(slice(*each) for each in sorted(unused))]
        names = {
            name for name, p in self.network.named_parameters() if any(p is table for table in self.vocabulary_tables())
        }
        return dict.fromkeys(names, rows)

    def _called(self, **arguments: Tensor | None) -> tuple[Tensor, Any]:
        """-> (what the last projection would read: [batch, length, features]; the class's outputs without logits)."""
        read: list[Tensor] = []
        with reading(self._projection, read):
            outputs = self.network(**{name: value for name, value in arguments.items() if value is not None})
        (features,) = read
        return features, outputs

    def _mask(self, documents: Tensor | None, causal: bool) -> Tensor | None:
        """documents: [batch, length], -1 for padding -> what a token may see, [batch, 1, length, length], or what is no
        padding, [batch, length], where the class makes the rest of it."""
        if documents is None:
            return None
        return document_mask(documents, causal=causal) if self.facts.packs else (documents >= 0).long()

    def _positions(self, positions: Tensor | None) -> Tensor | None:
        if positions is None or "position_ids" not in self.accepted:
            return None
        return positions + self.offset


class Decoder(TextAdapter):
    """Role.DECODER: tokens, int [batch, length] -> what the head reads, [batch, length, features]."""

    head: TokenHead

    def forward(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """See models.base.Decoder."""
        features, _ = self._called(
            input_ids=tokens,
            position_ids=self._positions(positions) if self.facts.packs else None,
            attention_mask=self._mask(documents, causal=True),
        )
        return features


class TokenEncoder(TextAdapter):
    """Role.TOKEN_ENCODER: tokens, int [batch, length] -> what the heads read: [batch, length, features], and with
    pairs one place more, whose first two features are the pair's logits."""

    head: MaskedHead
    pair_head: PairHead
    horizon_segments = 0

    @property
    def _reads_segments(self) -> bool:
        """RoBERTa's folders have one row for all tokens, which the class adds by itself."""
        rows = self.network.config.to_dict().get("type_vocab_size", 2)
        return "token_type_ids" in self.accepted and rows > 1

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """See models.base.TokenEncoder."""
        features, outputs = self._called(
            input_ids=tokens,
            token_type_ids=segments if self._reads_segments else None,
            position_ids=self._positions(positions) if self.facts.packs else None,
            attention_mask=self._mask(documents, causal=False),
        )
        if "pair_head" not in self.head_names:
            return features
        pairs = outputs[self.facts.pair_logits]
        return torch.cat([features, F.pad(pairs, (0, features.shape[-1] - pairs.shape[-1]))[:, None]], 1)

    def initialize(self, seed: int) -> None:
        """Raises InputError where the class has a head for pairs that the objective does not train."""
        if self.facts.pair_logits is not None and "pair_head" not in self.head_names:
            raise InputError(
                f"model.architecture={self.config.architecture} has a head for pairs of segments, which this objective "
                f"does not train: use {self.config.architecture.removesuffix('ForPreTraining')}ForMaskedLM"
            )
        super().initialize(seed)

    def make_masked_head(self, layers: Layers, used: Ids | None = None, z_loss: float = 0.0) -> MaskedHead:
        return MaskedHead(self.make_token_head(layers, used, z_loss))

    def make_pair_head(self) -> PairHead:
        if self.facts.pair_logits is None:
            raise InputError(
                f"model.architecture={self.config.architecture} has no head for pairs of segments: "
                "use objective.pairing=none"
            )
        return PairHead()


class EncoderDecoder(TextAdapter):
    """Role.ENCODER_DECODER: inputs and targets (shifted right), int [batch, length] -> what the head reads of the
    decoder, [batch, targets, features]."""

    head: TokenHead

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_documents: Tensor | None = None,
        target_documents: Tensor | None = None,
    ) -> Tensor:
        """See models.base.EncoderDecoder; one document a row."""
        features, _ = self._called(
            input_ids=inputs,
            attention_mask=None if input_documents is None else (input_documents >= 0).long(),
            decoder_input_ids=targets,
            decoder_attention_mask=None if target_documents is None else (target_documents >= 0).long(),
        )
        return features


class MaskedHead(nn.Module):
    """Losses or logits of the masked positions alone."""

    def __init__(self, decoder: TokenHead) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, hidden: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """hidden: [batch, length, features]; positions, labels: int [batch, predictions], labels IGNORED where there
        is none -> sum of the losses, fp32 scalar."""
        return self.decoder(_at(hidden, positions), labels)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """-> [batch, predictions, vocabulary]."""
        return self.decoder.logits(_at(hidden, positions))


class PairHead(nn.Module):
    """The logits of a pair, [batch, 2], that TokenEncoder has put after the last position."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, -1, :2]


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden[torch.arange(len(positions), device=positions.device)[:, None], positions]


class ImageEncoder(Adapter):
    """Role.IMAGE_ENCODER: images, [batch, 3, image_size, image_size], normalized -> logits of the classes: the head is
    the class's own."""

    head: nn.Module

    def __init__(self, config: HuggingFaceConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__(config, vocabulary, layers)
        self.num_classes = vocabulary.classes

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits

    def make_class_head(self) -> nn.Module:
        return nn.Identity()

    def flops_per_image(self) -> float:
        return 3.0 * tracing.forward_flops_per_image(self.config, self.vocabulary)


BY_ROLE: dict[Role, type[Adapter]] = {
    Role.DECODER: Decoder,
    Role.TOKEN_ENCODER: TokenEncoder,
    Role.ENCODER_DECODER: EncoderDecoder,
    Role.IMAGE_ENCODER: ImageEncoder,
}


def build(config: HuggingFaceConfig, vocabulary: Vocabulary, layers: Layers) -> Adapter:
    """The model in its architecture's role."""
    role = facts_of(config.architecture).role
    assert role is not None, config.architecture  # HuggingFaceConfig.problems
    return BY_ROLE[role](config, vocabulary, layers)
