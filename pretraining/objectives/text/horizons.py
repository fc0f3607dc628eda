"""What the tokens of one encoder see under the four masks of UniLM (Dong et al. 2019, "Unified Language Model
Pre-training", section 2.3), and the samples that are made for each. Pure functions of tokens and generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from data_pipeline.loader import Sample
from data_pipeline.stream.sentence_packing import Pairing, PairPart
from pretraining.labels import IGNORED
from pretraining.objectives.text.framing import paired
from pretraining.objectives.text.sentence_pairs import Pair, next_sentence, truncate

Mask = Literal["bidirectional", "left_to_right", "right_to_left", "sequence_to_sequence"]
# Mask -> the segments of a first and of a second text (microsoft/unilm, unilm-v1, seq2seq_loader.py, new_segment_ids)
SEGMENTS: Mapping[Mask, tuple[int, int]] = {
    "bidirectional": (0, 1),
    "left_to_right": (2, 2),
    "right_to_left": (3, 3),
    "sequence_to_sequence": (4, 5),
}
ALL_SEGMENTS = 6


def bidirectional() -> dict[Mask, float]:
    """The shares where every token sees all of its sample."""
    return {"bidirectional": 1.0}


def mask_of(sample: Sample) -> Mask:
    return next(mask for mask, (first, _) in SEGMENTS.items() if first == sample["segments"][0])


def random_rate(shares: Mapping[Mask, float]) -> float:
    """Of the pairs, how many take their second text from elsewhere: half of those under the bidirectional mask, which
    alone can have such a pair."""
    return shares.get("bidirectional", 0.0) / 2


def draw_mask(shares: Mapping[Mask, float], parts: Sequence[PairPart], rng: np.random.Generator) -> Mask:
    """shares: sum to 1. -> a mask with the probability of its share, over a packing that makes `random_rate` of its
    pairs at random: a random pair is bidirectional, a continuation that much less often."""
    pairing = parts[-1].pairing
    if pairing is Pairing.RANDOM:
        return "bidirectional"
    left = dict(shares)
    if pairing is Pairing.CONTINUATION and "bidirectional" in left:
        left["bidirectional"] -= random_rate(shares)
    weights = np.cumsum(list(left.values()))
    return list(left)[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]


def under_mask(
    mask: Mask, parts: Sequence[PairPart], length: int, cls: int, sep: int, rng: np.random.Generator
) -> Sample:
    """The sample of a mask, of at most `length` tokens, with int64 [tokens] `first` and `last`, the first and the last
    position that each token sees.

    Texts that follow each other are a pair of source and target, or one text under the masks of a single direction.
    Where the packing has only one text, or an unrelated second one, source and target are two parts of the first.
    """
    if mask == "bidirectional":
        sample = paired(next_sentence(parts, length - 3, rng), cls, sep)
    elif mask == "sequence_to_sequence":
        sample = paired(Pair(*truncate(*_source_and_target(parts, rng), length - 3, rng), IGNORED), cls, sep)
    else:
        text = _contiguous(parts)
        sample = paired(Pair(*truncate(text, text[:0], length - 2, rng), IGNORED), cls, sep)
    source = int((sample["segments"] == 0).sum())
    first, last = horizon(mask, len(sample["tokens"]), source)
    segments = np.array(SEGMENTS[mask])[sample["segments"]]
    return sample | {"segments": segments, "first": first, "last": last}


def horizon(mask: Mask, length: int, source: int) -> tuple[np.ndarray, np.ndarray]:
    """-> the first and the last position that each token sees, int64 [length] each. source: tokens of the first text,
    with its [cls] and [sep]. What a token sees can itself see nothing more: layers cannot leak."""
    own, begin, end = np.arange(length), np.zeros(length, np.int64), np.full(length, length - 1)
    if mask == "bidirectional":
        return begin, end
    if mask == "right_to_left":
        return own, end
    return begin, own if mask == "left_to_right" else np.maximum(own, source - 1)


def _contiguous(parts: Sequence[PairPart]) -> np.ndarray:
    follows = parts[-1].pairing is Pairing.CONTINUATION
    return np.concatenate([part.tokens for part in (parts if follows else parts[:1])])


def _source_and_target(parts: Sequence[PairPart], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if parts[-1].pairing is Pairing.CONTINUATION:
        return parts[0].tokens, parts[1].tokens
    text = parts[0].tokens
    at = int(rng.integers(1, max(2, len(text))))
    return text[:at], text[at:]
