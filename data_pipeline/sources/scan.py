"""The first pass over a corpus: what it holds, which documents are for validation, a sample of them."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from data_pipeline.common.progress import PassProgress
from data_pipeline.shards.continuation import Scan
from data_pipeline.sources.find import reading
from data_pipeline.sources.text import RawDocument
from data_pipeline.stream.shares import smoothed_shares

_HASH_RANGE = 1 << 64


class Hashed(NamedTuple):
    """A document with the keyed hash of its text: equal texts have equal hashes, wherever they stand."""

    text: str
    size: int  # bytes of UTF-8
    digest: bytes
    split_hash: int  # below 2^64
    sample_hash: int  # below 2^64
    entry: int = 0  # see RawDocument


def hashed(
    documents: Iterable[RawDocument], seed: int, split_by: Callable[[str], str] | None = None
) -> Iterator[Hashed]:
    """`documents` with their hashes under `seed`. split_by: the part of a text whose hash decides its split; None takes
    all of it."""
    key = str(seed).encode()
    for document in documents:
        data = document.text.encode()
        digest = hashlib.blake2b(data, key=key, digest_size=16).digest()
        split_hash, sample_hash = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:]))
        if split_by is not None:
            part = hashlib.blake2b(split_by(document.text).encode(), key=key, digest_size=16).digest()
            split_hash = int.from_bytes(part[:8], "big")
        yield Hashed(document.text, len(data), digest, split_hash, sample_hash, document.entry)


def split_of(split_hash: int, smallest_hash: int, valid_fraction: float) -> str:
    """'valid' for the fraction `valid_fraction` of all hashes and for the corpus's smallest; else 'train'."""
    is_valid = split_hash < valid_fraction * _HASH_RANGE or split_hash == smallest_hash
    return "valid" if is_valid else "train"


def listing_hash(files: list[str]) -> str:
    """sha256 of path, size and modification time of `files`."""
    digest = hashlib.sha256()
    for path in files:
        with reading(path):
            found = os.stat(path)
        digest.update(
            f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


class DocumentSample:
    """The documents of smallest `sample_hash` that fit into `max_bytes` together; one at least."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._heap: list[tuple[int, int, Hashed]] = []  # the largest hash first
        self.bytes = 0

    def offer(self, number: int, document: Hashed) -> None:
        heapq.heappush(self._heap, (-document.sample_hash, -number, document))
        self.bytes += document.size
        self.keep(self._max_bytes)

    def keep(self, max_bytes: float) -> None:
        """No more than these; one document at least."""
        while self.bytes > max_bytes and len(self._heap) > 1:
            self.bytes -= heapq.heappop(self._heap)[2].size

    def texts(self) -> list[str]:
        return [document.text for _, _, document in sorted(self._heap, key=lambda entry: entry[:2])]


class SmoothedSample:
    """As DocumentSample, where each entry of the inputs has its part of `max_bytes`: by its bytes to the power
    `smoothing`, or all that it has (Conneau and Lample 2019, "Cross-lingual Language Model Pretraining", section 3.1,
    which draws sentences for its vocabulary so). Up to max_bytes of each entry are held until it is asked for."""

    def __init__(self, max_bytes: int, smoothing: float) -> None:
        self._max_bytes, self._smoothing = max_bytes, smoothing
        self._samples: dict[int, DocumentSample] = {}
        self._sizes: dict[int, float] = {}

    def offer(self, number: int, document: Hashed) -> None:
        self._samples.setdefault(document.entry, DocumentSample(self._max_bytes)).offer(number, document)
        self._sizes[document.entry] = self._sizes.get(document.entry, 0) + document.size

    @property
    def bytes(self) -> int:
        return sum(sample.bytes for sample in self._cut().values())

    def texts(self) -> list[str]:
        return [text for _, sample in sorted(self._cut().items()) for text in sample.texts()]

    def _cut(self) -> dict[int, DocumentSample]:
        for entry, share in smoothed_shares(self._sizes, self._smoothing).items():
            self._samples[entry].keep(self._max_bytes * share)
        return self._samples


class Scanner:
    """Takes the documents one by one and keeps what the next steps need of them."""

    def __init__(
        self, valid_fraction: float, sample_bytes: int, count_characters: bool, smoothing: float = 1.0
    ) -> None:
        """smoothing: below 1 the sample is a SmoothedSample."""
        whole = smoothing == 1.0
        self.sample = DocumentSample(sample_bytes) if whole else SmoothedSample(sample_bytes, smoothing)
        self.characters: Counter[str] = Counter()
        self._valid_fraction, self._count_characters = valid_fraction, count_characters
        self._documents = self._bytes = self._below = self._smallest_repeats = 0
        self._smallest = _HASH_RANGE
        self._corpus = hashlib.sha256()

    def take(self, document: Hashed) -> None:
        self._corpus.update(document.digest)
        self.sample.offer(self._documents, document)
        if self._count_characters:
            self.characters.update(document.text)
        self._documents += 1
        self._bytes += document.size
        self._below += split_of(document.split_hash, -1, self._valid_fraction) == "valid"
        if document.split_hash < self._smallest:
            self._smallest, self._smallest_repeats = document.split_hash, 0
        self._smallest_repeats += document.split_hash == self._smallest

    def result(self) -> Scan:
        valid = self._below or self._smallest_repeats
        return Scan(self._documents, self._bytes, valid, self._smallest, self._corpus.hexdigest())


def scan_documents(documents: Iterable[Hashed], scanner: Scanner) -> None:
    """Gives every document to `scanner`, with a progress bar."""
    with PassProgress("scanning", total_bytes=None) as progress:
        for document in documents:
            scanner.take(document)
            progress.add(document.size)
