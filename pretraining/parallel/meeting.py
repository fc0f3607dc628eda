"""Where the ranks of a job meet before any process group, and before a GPU is touched: a key-value store.

Rank 0 (or torchrun) holds the store at MASTER_ADDR and MASTER_PORT. Whoever reaches that port can read and change what
lies there, as in every job of torch; what is read is JSON, and executes nothing.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from pretraining.parallel.launch import Launch
from pretraining.parallel.lost import LostPeer, lost_peer

if TYPE_CHECKING:
    from torch.distributed import Store

TIMEOUT_SECONDS = 300.0  # where no config says another: train.timeout_seconds

LAST_WORDS_SECONDS = 5.0  # for the store, whose rank may be the one that is gone


class Meeting:
    """Exchanges texts between ranks that have no process group yet, and keeps what a rank says of its end."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None, timeout: float = TIMEOUT_SECONDS):
        self.rank, self.size, self.store, self.timeout = rank, size, store, timeout
        self.rounds = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather_texts(self, text: str | None) -> list[str | None]:
        """Every rank's text, by rank. Raises LostPeer where one does not come in time."""
        if self.store is None:
            return [text]
        self.rounds += 1
        try:
            return self._exchange(self.store, f"round_{self.rounds}", text)
        except RuntimeError as error:
            raise LostPeer(lost_peer(error) or str(error)) from error

    def _exchange(self, store: Store, name: str, text: str | None) -> list[str | None]:
        """By way of rank 0: each text passes the store twice, not once a rank."""
        if not self.is_main:
            store.set(f"{name}/{self.rank}", json.dumps(text))
            store.wait([f"{name}/all"], timedelta(seconds=self.timeout))
            texts = json.loads(store.get(f"{name}/all"))
            if store.add(f"{name}/read", 1) == self.size - 1:
                store.set(f"{name}/left", "")
            return texts
        deadline = time.monotonic() + self.timeout
        keys = [f"{name}/{rank}" for rank in range(1, self.size)]
        texts = [text, *(json.loads(self._get(store, key, deadline)) for key in keys)]
        store.set(f"{name}/all", json.dumps(texts))
        if self.size > 1:  # rank 0 may hold the store: it must not leave before all have read
            store.wait([f"{name}/left"], timedelta(seconds=self.timeout))
        return texts

    def _get(self, store: Store, key: str, deadline: float) -> bytes:
        try:
            store.wait([key], timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError as error:
            raise LostPeer(f"rank {key.rpartition('/')[2]} gave no answer within {self.timeout:g} s") from error
        return store.get(key)

    def note_end(self, reason: str) -> None:
        """Leaves word for the others why this rank ends alone."""
        if self.store is not None:
            try:
                self.store.set_timeout(timedelta(seconds=LAST_WORDS_SECONDS))
                self.store.set(f"end/{self.rank}", json.dumps(reason))
            except RuntimeError:  # the store's rank is gone, with all who would have read it
                return

    def ends(self) -> dict[int, str]:
        """What ranks have said of their end so far; {} where the store is gone."""
        if self.store is None:
            return {}
        try:
            self.store.set_timeout(timedelta(seconds=LAST_WORDS_SECONDS))
            found = [rank for rank in range(self.size) if self.store.check([f"end/{rank}"])]
            return {rank: json.loads(self.store.get(f"end/{rank}")) for rank in found}
        except RuntimeError:
            return {}


def meet(launch: Launch, timeout: float = TIMEOUT_SECONDS) -> Meeting:
    """Waits until all ranks of the job are there. Raises LostPeer where some are not in time."""
    if launch.size == 1:
        return Meeting(timeout=timeout)
    store = _store(launch, timeout)
    store.set_timeout(timedelta(seconds=timeout))
    meeting = Meeting(launch.rank, launch.size, store, timeout)
    meeting.gather_texts(None)  # torchrun's store is there before any rank is
    return meeting


def _store(launch: Launch, timeout: float) -> Store:
    """Raises LostPeer. In a thread that is left behind: torch obeys the timeout while it connects, but waits for the
    first answer without end where another program listens at the port."""
    from torch.distributed import rendezvous

    address = f"env://?rank={launch.rank}&world_size={launch.size}"
    found: list[Store] = []
    errors: list[RuntimeError] = []

    def connect() -> None:
        try:
            found.append(next(rendezvous(address, timeout=timedelta(seconds=timeout)))[0])
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout + LAST_WORDS_SECONDS)
    if found:
        return found[0]
    why = errors[0] if errors else "what listens at MASTER_ADDR and MASTER_PORT does not answer as a rank does"
    raise LostPeer(f"the {launch.size} ranks did not meet within {timeout:g} s: {why}") from next(iter(errors), None)
