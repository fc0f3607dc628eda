"""ELMo: tokens from their characters, then one stack of LSTMs in each direction.

As published (Peters et al. 2018, "Deep contextualized word representations", section 3; allenai/bilm-tf,
bilm/training.py), but for the state's scope: it is zero where a sequence and a document begin, and not carried from one
batch to the next, so that the loss of a batch depends on the batch alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.models.blocks import BlockStack
from pretraining.models.elmo.characters import CHARACTERS
from pretraining.models.elmo.config import ELMoConfig
from pretraining.models.heads import Ids, TokenHead
from pretraining.models.initialization import initialize
from pretraining.models.transformer import TransformerModel
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers

FORGET_BIAS = 1.0  # of TensorFlow's LSTMCell
CARRY_BIAS = -2.0  # a highway begins by carrying its input
FILTER_RANGE = 0.05  # initial weights of the convolutions are uniform up to it


class Highway(nn.Module):
    """Srivastava et al. 2015, "Highway Networks"."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, size)
        self.transform = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.transform(x)) + (1.0 - gate) * x


class CharacterEncoder(nn.Module):
    """characters: int [batch, length, characters] -> [batch, length, hidden]: convolutions, the maximum over places,
    highways, a projection (Kim et al. 2015, "Character-Aware Neural Language Models")."""

    def __init__(self, config: ELMoConfig) -> None:
        super().__init__()
        width = sum(count for _, count in config.filters)
        self.embedding = nn.Embedding(CHARACTERS, config.character_size)
        self.filters = nn.ModuleList(nn.Conv1d(config.character_size, count, size) for size, count in config.filters)
        self.highways = nn.ModuleList(Highway(width) for _ in range(config.highways))
        self.projection = nn.Linear(width, config.hidden_size)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.embedding(characters.flatten(0, 1)).transpose(1, 2)
        found = torch.cat([F.relu(convolution(x).amax(-1)) for convolution in self.filters], dim=-1)
        for highway in self.highways:
            found = highway(found)
        return self.projection(found).unflatten(0, characters.shape[:2])


class ProjectedLSTM(nn.Module):
    """An LSTM whose output is projected, with bounds for cell and projection (Sak et al. 2014; TensorFlow's LSTMCell).

    Its weights are its own, not of layers within: ZeRO 3 would gather those at every step.
    """

    def __init__(self, layers: Layers, size: int, cell: int, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.input_weight = layers.parameter((4 * cell, size), 0)
        self.recurrent_weight = layers.parameter((4 * cell, size), 0)
        self.bias = layers.parameter((4 * cell,), 0)
        self.projection_weight = layers.parameter((size, cell), 1)

    def forward(self, x: Tensor, begins: Tensor) -> Tensor:
        """x: [batch, length, size]; begins: bool [batch, length], True where the state before is zero -> as x."""
        given = F.linear(x, self.input_weight, self.bias)
        output = x.new_zeros(x.shape[0], self.projection_weight.shape[0])
        cell = x.new_zeros(x.shape[0], self.projection_weight.shape[1])
        outputs = []
        for step, begin in zip(given.unbind(1), begins.unbind(1), strict=True):
            output, cell = (state.masked_fill(begin[:, None], 0.0) for state in (output, cell))
            enter, new, keep, leave = (step + F.linear(output, self.recurrent_weight)).chunk(4, dim=-1)
            cell = torch.sigmoid(keep + FORGET_BIAS) * cell + torch.sigmoid(enter) * torch.tanh(new)
            cell = cell.clamp(-self.clip, self.clip)
            output = F.linear(torch.sigmoid(leave) * torch.tanh(cell), self.projection_weight)
            output = output.clamp(-self.clip, self.clip)
            outputs.append(output)
        return torch.stack(outputs, dim=1)


class ELMo(TransformerModel):
    """Role.BIDIRECTIONAL_DECODER."""

    head: TokenHead

    def __init__(self, config: ELMoConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.encoder = CharacterEncoder(config)
        shape = (config.hidden_size, config.cell_size, config.clip)
        self.ahead, self.back = (
            nn.ModuleList(ProjectedLSTM(layers, *shape) for _ in range(config.num_layers)) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, characters: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """See models.base.BidirectionalDecoder."""
        x = self.encoder(characters)
        ahead = self._run(self.ahead, x, documents)
        return ahead, self._run(self.back, x.flip(1), documents.flip(1)).flip(1)

    def _run(self, stack: nn.ModuleList, x: Tensor, documents: Tensor) -> Tensor:
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        for number, lstm in enumerate(stack):
            given = self.dropout(x)
            x = lstm(given, begins)
            x = x + given if number else x  # training.py, use_skip_connections: from the second one on
        return self.dropout(x)

    def make_direction_head(self, layers: Layers, used: Ids | None = None) -> TokenHead:
        """A table of its own with a bias, the same for both directions."""
        table = layers.parameter((padded_vocabulary(self.vocab_size), self.config.hidden_size), 0)
        return TokenHead(layers, self.vocab_size, table, bias=True, used=used)

    def flops_per_token(self, characters: int) -> float:
        """Forward and backward of one token of so many characters, both directions and their heads included: 6 per
        weight used."""
        config = self.config
        width = sum(count for _, count in config.filters)
        convolutions = sum(
            size * config.character_size * count * (characters - size + 1) for size, count in config.filters
        )
        encoder = convolutions + config.highways * 2 * width * width + width * config.hidden_size
        lstm = 9 * config.cell_size * config.hidden_size
        return 6.0 * (encoder + 2 * config.num_layers * lstm + 2 * self.vocab_size * config.hidden_size)

    def padded_rows(self, name: str) -> int:
        """Those of the head."""
        return padded_vocabulary(self.vocab_size) - self.vocab_size if name.startswith("head.") else 0

    def block_stacks(self) -> list[BlockStack]:
        return [BlockStack(stack, (self.encoder,)) for stack in (self.ahead, self.back)]

    def initialize(self, seed: int) -> None:
        """As bilm/training.py: characters uniform to 1, filters to 0.05, LSTMs by Glorot's rule, all else normal with
        variance 1 / inputs; biases 0, but for the highways' gates."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if tensor.ndim == 1:
            tensor.fill_(CARRY_BIAS if name.endswith("gate.bias") else 0.0)
        elif name == "encoder.embedding.weight":
            tensor.uniform_(-1.0, 1.0, generator=generator)
        elif "filters" in name:
            tensor.uniform_(-FILTER_RANGE, FILTER_RANGE, generator=generator)
        elif name.startswith(("ahead", "back")):
            nn.init.xavier_uniform_(tensor, generator=generator)
        else:
            tensor.normal_(0.0, 1.0 / math.sqrt(tensor.shape[1]), generator=generator)
