"""An exchange between ranks that names who does not answer, in place of ending with them."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import pydantic

from pretraining.parallel.lost import LostPeer
from pretraining.parallel.meeting import Meeting

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")
GRACE_SECONDS = 5.0  # for rank 0's answer, after it has waited for the last rank


class RollCall:
    """Rank 0 collects what each rank says within a time, and tells all of them what follows."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting, self.rounds = meeting, 0

    def collect(self, mine: T, kind: type[T], seconds: float) -> list[T | None] | None:
        """-> on rank 0, what every rank said, by rank, None for those that did not within `seconds`."""
        self.rounds += 1
        store = self.meeting.store
        if store is None:
            return [mine]
        adapter: pydantic.TypeAdapter[T] = pydantic.TypeAdapter(kind)
        if not self.meeting.is_main:
            store.set(self._key(self.meeting.rank), adapter.dump_json(mine).decode())
            return None
        deadline = time.monotonic() + seconds
        said: list[T | None] = [mine]
        for rank in range(1, self.meeting.size):
            text = _within(store, self._key(rank), deadline - time.monotonic())
            said.append(None if text is None else adapter.validate_json(text))
        return said

    def tell(self, word: str | None, seconds: float) -> str:
        """Rank 0's word, on every rank; of the others None is taken. seconds: that rank 0 has been waiting for others.
        Raises LostPeer where it says nothing."""
        store = self.meeting.store
        if store is None or self.meeting.is_main:
            assert word is not None, "rank 0 decides"
            if store is not None:
                store.set(self._key("word"), json.dumps(word))
            return word
        text = _within(store, self._key("word"), seconds + GRACE_SECONDS)
        if text is None:
            raise LostPeer("rank 0 gave no answer")
        store.add(self._key("heard"), 1)
        return str(json.loads(text))

    def part(self, answering: int) -> None:
        """Rank 0, which may hold the store, waits until so many others have heard its last word."""
        store = self.meeting.store
        deadline = time.monotonic() + GRACE_SECONDS
        if store is None or not self.meeting.is_main:
            return
        while store.add(self._key("heard"), 0) < answering and time.monotonic() < deadline:
            time.sleep(0.01)

    def _key(self, name: int | str) -> str:
        return f"roll_call_{self.rounds}/{name}"


def _within(store: Store, key: str, seconds: float) -> bytes | None:
    """The value once it is there; None where it does not come in time."""
    try:
        store.wait([key], timedelta(seconds=max(0.001, seconds)))
    except RuntimeError:
        return None
    return store.get(key)
