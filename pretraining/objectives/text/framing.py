"""Samples of an encoder before anything is masked: text between [cls] and [sep]. Pure functions of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.loader import Sample
from pretraining.objectives.text.sentence_pairs import Pair


def packed(segments: Sequence[np.ndarray], cls: int, sep: int) -> Sample:
    """Each segment between a [cls] and a [sep] of its own, one without text left out. They do not see each other, and
    positions restart at each."""
    framed = [_framed(segment, cls, sep) for segment in segments]
    framed = [tokens for tokens in framed if len(tokens) > 2] or framed[:1]
    lengths = [len(tokens) for tokens in framed]
    tokens = np.concatenate(framed)
    return {
        "tokens": tokens,
        "segments": np.zeros_like(tokens),
        "positions": np.concatenate([np.arange(n) for n in lengths]),
        "documents": np.repeat(np.arange(len(lengths)), lengths),
    }


def _framed(segment: np.ndarray, cls: int, sep: int) -> np.ndarray:
    before = [] if segment[0] == cls else [cls]
    after = [] if segment[-1] == sep else [sep]
    return np.concatenate([before, segment, after]).astype(np.int64)


def contiguous(segments: Sequence[np.ndarray], cls: int, sep: int) -> Sample:
    """[cls] first [sep] second [sep] ...: one text, whose tokens see all of it."""
    parts = [part for segment in segments for part in (segment, [sep])]
    tokens = np.concatenate([[cls], *parts]).astype(np.int64)
    return {
        "tokens": tokens,
        "segments": np.zeros_like(tokens),
        "positions": np.arange(len(tokens)),
        "documents": np.zeros_like(tokens),
    }


def paired(pair: Pair, cls: int, sep: int) -> Sample:
    """[cls] first [sep] second [sep], segments 0 and 1, with the pair's label."""
    second = [*pair.second, sep] if len(pair.second) else []
    tokens = np.array([cls, *pair.first, sep, *second], np.int64)
    segments = np.repeat([0, 1], [len(tokens) - len(second), len(second)])
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": np.arange(len(tokens)),
        "documents": np.zeros_like(tokens),
        "pair_label": np.array(pair.label),
    }
