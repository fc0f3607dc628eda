"""What of the prepared data a model must know, and how large the tables of a vocabulary are; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Vocabulary:
    """What a model reads and predicts.

    size: tokens without padding; 0 for images. special_ids: role -> id (pad, bos, eos, unk, mask, cls, sep, ...); empty
    for images. classes: of labeled images; 0 for text.
    """

    size: int = 0
    special_ids: Mapping[str, int] = field(default_factory=dict)
    classes: int = 0

    @property
    def outputs(self) -> int:
        """How many tokens or classes are predicted."""
        return self.size or self.classes


VOCABULARY_MULTIPLE = 128


def padded_vocabulary(vocab_size: int) -> int:
    """Rounded up to a multiple of 128, which any tensor-parallel size divides: a checkpoint fits every layout.

    The rows beyond `vocab_size` are 0 and take part in no softmax, no export and no published count.
    """
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
