"""Several corpora as one source of sequences: sample n is drawn from one of them, and each is walked in its own order.

A mixture's state holds the position in every corpus, so that what changes the mixture, other shares or another corpus,
leaves each where it stands: no sequence is left out or drawn twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import typed
from data_pipeline.shards.manifest import Count
from data_pipeline.stream.sequence_source import Origin, Part
from data_pipeline.stream.shares import Shares
from data_pipeline.stream.stream import Position, Stream

FORMAT = 1  # of what a state's JSON means


@dataclass(frozen=True)
class Corpus:
    """stream: its order. share: of the samples. content: a hash of what it holds."""

    stream: Stream
    share: float
    content: str


@dataclass(frozen=True)
class Stand:
    """Where a job stands in one corpus. position: as its stream has it in JSON."""

    content: str
    position: dict[str, int]


@dataclass(frozen=True)
class MixturePosition:
    """number: of samples handed out in all. begun: of these, before the mixture had its present shares. positions: in
    each corpus. former: where the job stood in corpora that the mixture no longer has."""

    number: int
    begun: int
    positions: Mapping[str, Position]
    former: Mapping[str, Stand]


@dataclass(frozen=True)
class _Stored:
    format: int
    number: Count
    begun: Count
    weights: dict[str, Count]  # the shares, see Shares
    sources: dict[str, Stand]


class Mixture:
    """A SequenceSource whose state is a MixturePosition."""

    def __init__(self, corpora: Mapping[str, Corpus], seed: int) -> None:
        self.corpora, self.seed = corpora, seed
        self.streams = {name: corpus.stream for name, corpus in corpora.items()}
        self.shares = Shares({name: corpus.share for name, corpus in corpora.items()}, seed)

    @property
    def parts(self) -> Mapping[str, Part]:
        return {name: Part(corpus.stream, corpus.share) for name, corpus in self.corpora.items()}

    def start(self) -> MixturePosition:
        return MixturePosition(0, 0, {name: stream.start() for name, stream in self.streams.items()}, {})

    def to_json(self, state: MixturePosition) -> dict[str, Any]:
        stands = {name: asdict(stand) for name, stand in state.former.items()}
        for name, position in state.positions.items():
            own = self.streams[name].to_json(position)
            stands[name] = {"content": self.corpora[name].content, "position": own}
        weights = dict(self.shares.weights)
        return {"format": FORMAT, "number": state.number, "begun": state.begun, "weights": weights, "sources": stands}

    def from_json(self, values: dict[str, Any]) -> MixturePosition:
        """A state of this mixture; of one that had other shares or corpora: the state in which this one begins."""
        stored = typed(values, _Stored, "its place in the data")
        if stored.format != FORMAT or stored.begun > stored.number:
            raise InputError(f"its place in the data is of format {stored.format}, this version has format {FORMAT}")
        positions = {name: stream.start() for name, stream in self.streams.items()}
        for name in self.streams.keys() & stored.sources.keys():
            positions[name] = self._position(name, stored.sources[name])
        same = stored.weights == self.shares.weights
        former = {name: stand for name, stand in stored.sources.items() if name not in self.streams}
        return MixturePosition(stored.number, stored.begun if same else stored.number, positions, former)

    def _position(self, name: str, stand: Stand) -> Position:
        if stand.content != self.corpora[name].content:
            raise InputError(
                f"data.sources.{name} holds other data than the run has drawn under this name, or was prepared again: "
                "its content differs. A corpus that is new to the run takes a name of its own"
            )
        return self.streams[name].from_json(stand.position)

    def number(self, state: MixturePosition) -> int:
        return state.number

    def passes(self, state: MixturePosition) -> int:
        return min(stream.passes(state.positions[name]) for name, stream in self.streams.items())

    def drawn(self, state: MixturePosition) -> dict[str, int]:
        return {name: position.number for name, position in state.positions.items()}

    def advance(self, state: MixturePosition, count: int) -> MixturePosition:
        """Raises InputError where no document of a corpus gives a sequence."""
        first = state.number - state.begun
        positions = {
            name: self.streams[name].advance(state.positions[name], drawn)
            if drawn or not count
            else state.positions[name]
            for name, drawn in self.shares.between(first, first + count).items()
        }
        return MixturePosition(state.number + count, state.begun, positions, state.former)

    def sequence(self, state: MixturePosition) -> Sequence[Any]:
        name = self._corpus(state)
        return self.streams[name].sequence(state.positions[name])

    def origins(self, state: MixturePosition) -> list[Origin]:
        """Which documents the sequence at `state` consists of; their shards with the corpus' name before them."""
        name = self._corpus(state)
        found = self.streams[name].origins(state.positions[name])
        return [origin._replace(shard=f"{name}:{origin.shard}") for origin in found]

    def _corpus(self, state: MixturePosition) -> str:
        return self.shares.corpus(state.number - state.begun)
