"""What the configs of all families share; free of torch, so that a config error comes at once."""

from __future__ import annotations

VOCABULARY_MULTIPLE = 128


def padded_vocabulary(vocab_size: int) -> int:
    """Rounded up so that it divides by any tensor-parallel size: a checkpoint fits every layout."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
