"""The seam between a corpus and the trainer: what is drawn next, as a pure function of a small state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

State = TypeVar("State")


class Origin(NamedTuple):
    """Where a segment of a sequence comes from: tokens [start, stop) of a framed document of a block of a shard."""

    shard: str  # its name in the manifest; in a mixture CORPUS:NAME
    block: int
    document: int
    start: int
    stop: int


class Part(NamedTuple):
    """One corpus of a mixture."""

    source: SequenceSource[Any]
    share: float  # of the samples


class SequenceSource(Protocol[State]):
    """An endless, seekable order of sequences. A stream over one corpus is one, a mixture of several another.

    seed: keys every random choice on the way to a sample. The trainer sees a State as JSON only.
    """

    seed: int

    @property
    def parts(self) -> Mapping[str, Part]:
        """The corpora of a mixture, by name; none of a single one."""
        ...

    def start(self) -> State:
        """Before the first sequence."""
        ...

    def to_json(self, state: State) -> dict[str, Any]:
        """Small and plain: what a checkpoint holds of it."""
        ...

    def from_json(self, values: dict[str, Any]) -> State:
        """Raises InputError where these are not values of `to_json`."""
        ...

    def number(self, state: State) -> int:
        """How many sequences were handed out before this state, in all epochs: the global sample number."""
        ...

    def passes(self, state: State) -> int:
        """How often every sequence was handed out before this state."""
        ...

    def drawn(self, state: State) -> Mapping[str, int]:
        """How many sequences each corpus of a mixture has given before this state; none of a single one."""
        ...

    def advance(self, state: State, count: int) -> State:
        """The state `count` sequences later. Reads no document."""
        ...

    def sequence(self, state: State) -> Sequence[Any]:
        """The segments of documents that the sequence at `state` consists of."""
        ...

    def origins(self, state: State) -> Sequence[Origin]:
        """Where these segments come from: for messages, and for people who want to look at the documents."""
        ...
