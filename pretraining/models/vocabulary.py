"""How large the tables of a vocabulary are; free of torch."""

from __future__ import annotations

VOCABULARY_MULTIPLE = 128


def padded_vocabulary(vocab_size: int) -> int:
    """Rounded up to a multiple of 128, which any tensor-parallel size divides: a checkpoint fits every layout.

    The rows beyond `vocab_size` are 0 and take part in no softmax, no export and no published count.
    """
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
