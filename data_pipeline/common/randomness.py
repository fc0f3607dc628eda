"""Random generators that depend on nothing but their keys: what they are for, the run's seed, and a place in it."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for. No two purposes share a stream of numbers, so a new one takes a new value here;
    the values decide every run's samples and never change."""

    ORDER = 1  # of shards, blocks and documents in an epoch
    CORRUPTION = 2  # of a sample: masks, noise, crops
    DROPOUT = 3
    SEQUENCES = 4  # the order in which a window's sequences are handed out
    MIXTURE = 5  # the order in which corpora take turns


def generator(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """A generator for one place of a run; `keys` say which, by step, window or sample number."""
    return np.random.default_rng([seed, int(purpose), *keys])
