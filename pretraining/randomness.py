"""What the random numbers of training depend on."""

from __future__ import annotations

from data_pipeline.common.randomness import Purpose, generator


def dropout_seed(seed: int, step: int, micro_batch: int, batch_rank: int) -> int:
    """Masks depend on what they are for, not on what was drawn before: a resumed run draws the same. Ranks that read
    the same micro-batch draw the same."""
    return int(generator(seed, Purpose.DROPOUT, step, micro_batch, batch_rank).integers(2**63))
