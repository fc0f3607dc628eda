"""ELECTRA: a generator that fills masks and a discriminator that finds what it filled in, over shared embeddings.

As published (Clark et al. 2020, "ELECTRA", sections 3.1 and 3.2; google-research/electra, model/modeling.py and
pretrain/run_pretraining.py): tokens, positions, segments and their norm are shared by both, each with a projection of
its own where its size is another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.models.attention import document_mask
from pretraining.models.bert.config import BertConfig
from pretraining.models.bert.model import MASKED_SHARE, Block
from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.electra.config import SEGMENTS, ElectraConfig
from pretraining.models.electra.sampling import SamplingHead
from pretraining.models.heads import Ids
from pretraining.models.initialization import initialize, truncated_normal
from pretraining.models.layers import make_norm
from pretraining.models.transformer import TextModel
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers


class Encoder(nn.Module):
    """Blocks on shared embeddings: [batch, length, embedding] -> [batch, length, hidden]."""

    def __init__(self, config: BertConfig, embedding_size: int, layers: Layers, checkpointing: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.checkpointing = checkpointing
        self.projection = nn.Linear(embedding_size, size) if embedding_size != size else None
        self.blocks = nn.ModuleList(Block(config, layers) for _ in range(config.num_layers))

    def forward(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        x = embedded if self.projection is None else self.projection(embedded)
        return run_blocks(self.blocks, x, mask, checkpointing=self.checkpointing and self.training)


class GeneratorHead(nn.Module):
    """Fills the masked positions: a dense layer to the embeddings' size, GELU, norm, then the embedding's table with a
    bias (google-research/electra, pretrain/run_pretraining.py, _get_masked_lm_output)."""

    def __init__(self, config: ElectraConfig, decoder: SamplingHead) -> None:
        super().__init__()
        self.transform = nn.Linear(config.generator_hidden_size, config.embedding_size)
        self.norm = make_norm("layernorm", config.embedding_size, config.norm_eps)
        self.decoder = decoder

    def forward(self, hidden: Tensor, positions: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """See objectives.models.SamplingMaskedHead."""
        return self.decoder(self._features(hidden, positions), labels, keys)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """-> [batch, predictions, vocabulary]. For unsharded weights only."""
        return self.decoder.logits(self._features(hidden, positions))

    def _features(self, hidden: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return self.norm(F.gelu(self.transform(hidden[rows, positions])))


class DetectionHead(nn.Module):
    """Which tokens were replaced: a dense layer, GELU, one logit (run_pretraining.py, _get_discriminator_output)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(size, size)
        self.classifier = nn.Linear(size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, length, hidden] -> logits [batch, length], above 0 for a token that was more likely replaced."""
        return self.classifier(F.gelu(self.transform(hidden)))[..., 0]


class Electra(TextModel):
    """Role.GENERATOR_DISCRIMINATOR."""

    head: GeneratorHead
    detection_head: DetectionHead

    def __init__(self, config: ElectraConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        size, checkpointing = config.embedding_size, config.activation_checkpointing
        self.token_embedding = layers.embedding(padded_vocabulary(self.vocab_size), size)
        self.position_embedding = nn.Embedding(config.max_seq_len, size)
        self.segment_embedding = nn.Embedding(SEGMENTS, size)
        self.embedding_norm = make_norm("layernorm", size, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.generator = Encoder(config.generator(), size, layers, checkpointing)
        self.discriminator = Encoder(config.discriminator(), size, layers, checkpointing)

    def generate(self, tokens: Tensor, segments: Tensor, positions: Tensor, documents: Tensor | None = None) -> Tensor:
        """See models.base.GeneratorDiscriminator."""
        return self.generator(self._embed(tokens, segments, positions), _mask(documents))

    def discriminate(
        self, tokens: Tensor, segments: Tensor, positions: Tensor, documents: Tensor | None = None
    ) -> Tensor:
        """See models.base.GeneratorDiscriminator."""
        return self.discriminator(self._embed(tokens, segments, positions), _mask(documents))

    def _embed(self, tokens: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.position_embedding(positions) + self.segment_embedding(segments)
        return self.dropout(self.embedding_norm(x))

    def make_generator_head(self, layers: Layers, used: Ids | None = None) -> GeneratorHead:
        table = self.token_embedding.get_parameter("weight")
        return GeneratorHead(self.config, SamplingHead(layers, self.vocab_size, table, bias=True, used=used))

    def make_detection_head(self) -> DetectionHead:
        return DetectionHead(self.config.hidden_size)

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token in both encoders: 6 per weight used, and attention's 12 x layers x hidden x
        length (Chowdhery et al. 2022, "PaLM", appendix B). Only the masked share of the tokens passes the generator's
        head, once more without a backward pass to draw from."""
        config = self.config
        embedding = config.embedding_size
        flops = 6.0 * config.hidden_size * (config.hidden_size + 1)
        for shape in (config.generator(), config.discriminator()):
            size = shape.hidden_size
            flops += 6.0 * shape.num_layers * (4 * size * size + 2 * size * shape.mlp_size)
            flops += 12.0 * shape.num_layers * size * length + 6.0 * embedding * size * (embedding != size)
        transform = 6.0 * config.generator_hidden_size * embedding
        return flops + MASKED_SHARE * (transform + 8.0 * self.vocab_size * embedding)

    def block_stacks(self) -> list[BlockStack]:
        tables = (self.token_embedding, self.position_embedding, self.segment_embedding, self.embedding_norm)
        return [
            BlockStack(encoder.blocks, (*tables, encoder.projection))
            for encoder in (self.generator, self.discriminator)
        ]

    def initialize(self, seed: int) -> None:
        """As BERT: google-research/electra, model/modeling.py, create_initializer."""
        initialize(self, self.layers, seed, truncated_normal(self.config.initializer_range))


def _mask(documents: Tensor | None) -> Tensor | None:
    return None if documents is None else document_mask(documents, causal=False)
