"""Batches that went wrong: told by the documents that they hold, recorded in the ledger, and passed over after a
roll-back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.stream.sequence_source import Origin
from pretraining.run.ledger import Ledger
from pretraining.run.spikes import SpikeWatch

Json = dict[str, Any]
Samples = Sequence[tuple[int, Sequence[Origin]]]  # (number in the whole run, where its segments come from)
SHOWN_SHARDS, SHOWN_DOCUMENTS = 3, 8


class Incidents:
    """What happened to a run's batches. Rank 0 records it.

    samples_from: (position, count) -> the samples of a batch. batch_size: sequences of a global batch. rolls_back:
    whether a spike is answered by a roll-back; then spiked_step is set until that is done. roll_backs: those so far.
    """

    def __init__(
        self,
        run_dir: Path,
        samples_from: Callable[[Json, int], Samples],
        batch_size: int,
        speaks: bool,
        rolls_back: bool,
    ) -> None:
        self.run_dir, self.ledger, self.spikes = run_dir, Ledger(run_dir), SpikeWatch()
        self.samples_from, self.batch_size, self.speaks, self.rolls_back = samples_from, batch_size, speaks, rolls_back
        self.spiked_step: int | None = None
        self.roll_backs = self.ledger.read("rollback")

    @property
    def spiked(self) -> bool:
        """Whether this rank waits for a roll-back."""
        return self.spiked_step is not None

    def state(self) -> list[float]:
        """What a checkpoint holds, so that a resumed run finds the same spikes."""
        return list(self.spikes.losses)

    def resume(self, losses: Sequence[float]) -> None:
        self.spikes, self.spiked_step = SpikeWatch(losses), None
        self.roll_backs = self.ledger.read("rollback")

    def see_loss(self, step: int, loss: float, position: Json) -> str | None:
        """position: before the step's batch. -> what to report; None where the loss is no spike."""
        told = self.spikes.see(loss)
        if told is None:
            return None
        if self.rolls_back and self.spiked_step is None:
            self.spiked_step = step
        return f"step {step}: {told}; {self.record('spike', step, position, loss)}"

    def record(self, kind: str, step: int, position: Json, loss: float = math.nan) -> str:
        """Writes a batch into the ledger -> its identity in words. Rank 0 alone looks it up, which may take a while."""
        if not self.speaks:
            return f"its batch is told in {self.ledger.path}"
        try:
            samples = self.samples_from(position, self.batch_size)
        except InputError as error:  # it was read before: the step's end is what matters
            return f"its batch cannot be told: {error}"
        entry = {"kind": kind, "step": step, "loss": loss if math.isfinite(loss) else None, "position": position}
        self._append(entry | {"samples": [n for n, _ in samples], "documents": documents_of(samples)})
        return f"its batch is {batch_text(samples)}"

    def describe(self, position: Json) -> str:
        """The batch at a position, in words."""
        return batch_text(self.samples_from(position, self.batch_size))

    def _append(self, entry: Json) -> None:
        try:
            self.ledger.append(entry)
        except OSError as error:  # it is told on the console as well
            print(f"warning: {self.ledger.path} cannot be written: {error}", file=sys.stderr)


def documents_of(samples: Samples) -> dict[str, list[list[int]]]:
    """-> {shard: [[block, document in it], ...]}, in order, each once."""
    found: dict[str, set[tuple[int, int]]] = {}
    for _, origins in samples:
        for origin in origins:
            found.setdefault(origin.shard, set()).add((origin.block, origin.document))
    return {shard: [list(pair) for pair in sorted(found[shard])] for shard in sorted(found)}


def batch_text(samples: Samples) -> str:
    """The samples by number and the first of their documents."""
    documents = documents_of(samples)
    parts = []
    for shard, pairs in list(documents.items())[:SHOWN_SHARDS]:
        shown = ", ".join(f"{block}/{document}" for block, document in pairs[:SHOWN_DOCUMENTS])
        more = f" and {len(pairs) - SHOWN_DOCUMENTS} more" if len(pairs) > SHOWN_DOCUMENTS else ""
        parts.append(f"{shard} (block/document {shown}{more})")
    if len(documents) > SHOWN_SHARDS:
        parts.append(f"{len(documents) - SHOWN_SHARDS} more shards")
    return f"samples {samples[0][0]} to {samples[-1][0]}: {'; '.join(parts)}"
