"""Documents to tokens in several processes, in the order of the documents."""

from __future__ import annotations

import functools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
import numpy.typing as npt

from data_pipeline.common.workers import end_with_parent
from data_pipeline.shards.text import TokenizedDocument, token_dtype
from data_pipeline.tokenizers.segmentation import Segmenter, make_segmenter, word_starts
from data_pipeline.tokenizers.tokenizer import Tokenizer

# A text -> its ids, and the first of each sentence, int64 [sentences]. A function of a module: it goes to the workers.
Encode = Callable[[Tokenizer, str], tuple[list[int], npt.NDArray[np.int64]]]
_CHUNK_CHARACTERS = 1 << 19
_CHUNKS_AHEAD_PER_WORKER = 3


def encode_documents(
    texts: Iterable[tuple[str, str]],
    folder: str,
    num_workers: int,
    encode: Encode = Tokenizer.encode_with_starts,
    words: str = "",
) -> Iterator[tuple[str, TokenizedDocument]]:
    """(split, text) to (split, document) in the same order, by the tokenizer stored in `folder`. words: the segmenter
    that finds word borders, if any.

    Up to one worker, the calling process does it itself. Memory is bounded by a few chunks per worker.
    """
    chunks = _chunks(texts)
    if num_workers <= 1:
        for splits, chunk in chunks:
            yield from zip(splits, encode_chunk(folder, chunk, encode, words), strict=True)
        return
    # spawn: a forked worker would hold its parent's lock and pipes open
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=end_with_parent) as pool:
        waiting: deque[tuple[list[str], Future[list[TokenizedDocument]]]] = deque()
        for splits, chunk in chunks:
            waiting.append((splits, pool.submit(encode_chunk, folder, chunk, encode, words)))
            if len(waiting) >= num_workers * _CHUNKS_AHEAD_PER_WORKER:
                yield from _result(*waiting.popleft())
        while waiting:
            yield from _result(*waiting.popleft())


def encode_chunk(folder: str, texts: list[str], encode: Encode, words: str = "") -> list[TokenizedDocument]:
    """The documents of one chunk, in a worker."""
    tokenizer = _load_tokenizer(folder)
    dtype = token_dtype(tokenizer.total_size)
    encoded = (encode(tokenizer, text) for text in texts)
    if not words:
        return [TokenizedDocument(np.array(ids, dtype=dtype), starts) for ids, starts in encoded]
    segment = _load_segmenter(words)
    return [
        TokenizedDocument(np.array(ids, dtype=dtype), starts, word_starts(tokenizer.spelled(ids), segment))
        for ids, starts in encoded
    ]


def _result(splits: list[str], documents: Future[list[TokenizedDocument]]) -> Iterator[tuple[str, TokenizedDocument]]:
    return zip(splits, documents.result(), strict=True)


@functools.lru_cache(maxsize=1)
def _load_tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)


@functools.lru_cache(maxsize=1)
def _load_segmenter(name: str) -> Segmenter:
    return make_segmenter(name)


def _chunks(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """-> (splits, texts) of documents that follow each other."""
    splits: list[str] = []
    chunk: list[str] = []
    room = _CHUNK_CHARACTERS
    for split, text in texts:
        splits.append(split)
        chunk.append(text)
        room -= len(text)
        if room <= 0:
            yield splits, chunk
            splits, chunk, room = [], [], _CHUNK_CHARACTERS
    if chunk:
        yield splits, chunk
