"""Prepared data as any program can read them: tars of numpy arrays and of images (docs/users.md)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image


def read_documents(data: Path, split: str) -> list[np.ndarray]:
    """The tokens of each document, int64 [tokens]."""
    found: list[np.ndarray] = []
    for sample in _samples(data, split):
        tokens = np.load(io.BytesIO(sample["tokens.npy"])).astype(np.int64)
        borders = np.load(io.BytesIO(sample["documents.npy"]))
        found += [tokens[a:b] for a, b in pairwise(borders)]
    return found


def read_images(data: Path, split: str) -> list[tuple[Image.Image, int]]:
    """Each image as RGB, and the number of its class."""
    found = []
    for sample in _samples(data, split):
        (encoded,) = (value for name, value in sample.items() if name != "cls")
        found.append((Image.open(io.BytesIO(encoded)).convert("RGB"), int(sample["cls"])))
    return found


def _samples(data: Path, split: str) -> Iterator[dict[str, bytes]]:
    """Members that share what stands before the first dot of their names."""
    for path in sorted((data / split).glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[name] = file.read()
        yield from samples.values()
