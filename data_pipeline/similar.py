"""`pretrain-data similar output=DIR`: a table of similar words for prepared data, for objective.replacement=similar."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, PathText, Positive, configclass

if TYPE_CHECKING:
    from data_pipeline.shards.text import TextReader
    from data_pipeline.tokenizers.similar import Word
    from data_pipeline.tokenizers.tokenizer import Tokenizer

_ABOUT = """pretrain-data similar: a table of similar words for prepared data, from word vectors or a file.

Example:
  pretrain-data similar output=data/books
"""
_MOST_WORDS = 100_000  # that have vectors: the most frequent ones
_ROWS = 256  # of the matrix of similarities that are held at once


@configclass
class SimilarConfig:
    """For each word those that are used similarly, of as many pieces, written beside the tokenizer of prepared data.

    output: the folder that pretrain-data wrote.
    table: a file with a word and its similar ones in each line, tabs between; null trains word vectors on the training
        split, whose words tokenizer.words found (word2vec, Mikolov et al. 2013, by gensim).
    neighbors: similar words of each, at most.
    vector_size: features of a word vector.
    epochs: passes over the words.
    min_count: how often a word occurs at least.
    seed: of the word vectors.
    """

    output: PathText
    table: PathText | None = None
    neighbors: Positive = 10
    vector_size: Positive = 64
    epochs: Positive = 3
    min_count: Positive = 5
    seed: NonNegative = 1


def main() -> int:
    """-> exit code."""
    return run_command(_command, _ABOUT, "similar", SimilarConfig)


def make_similar(config: SimilarConfig) -> str:
    """Writes the table, then its checksum into the manifest -> what was done, for a person. Raises InputError."""
    from data_pipeline.common.files import join, write_atomically
    from data_pipeline.shards.manifest import load_manifest, save_manifest
    from data_pipeline.shards.text import TextReader
    from data_pipeline.tokenizers.similar import FILE, SimilarWords, encode_similar
    from data_pipeline.tokenizers.tokenizer import Tokenizer

    manifest = load_manifest(config.output)
    info = manifest.tokenizer
    if info is None:
        raise InputError(f"output={config.output} holds {manifest.kind}, which have no words")
    folder = join(manifest.root, "tokenizer")
    tokenizer = Tokenizer.load(folder)
    if config.table is not None:
        found = _from_file(config.table, tokenizer, config.neighbors)
    elif not info.words:
        raise InputError(f"output={config.output} was prepared without word borders: tokenizer.words=jieba finds them")
    else:
        found = _from_vectors(_Sentences(TextReader(manifest, "train")), config)
    if not found:
        raise InputError("no word has a similar one of as many pieces")
    data = encode_similar(found)
    write_atomically(join(folder, FILE), data)
    made = SimilarWords(data, tokenizer.total_size)
    save_manifest(replace(manifest, tokenizer=replace(info, similar=made.sha256)))
    return f"{len(made)} words with similar ones, {len(data) / 1e6:.1f} MB; written to {join(folder, FILE)}"


def _command(overrides: list[str]) -> None:
    print(make_similar(compose_config("similar", overrides, SimilarConfig)))


def _from_file(path: str, tokenizer: Tokenizer, neighbors: int) -> dict[Word, list[Word]]:
    from data_pipeline.common.files import read_bytes
    from data_pipeline.tokenizers.similar import MAX_BYTES

    try:
        lines = read_bytes(path, MAX_BYTES).decode().splitlines()
    except OSError as error:
        raise InputError(f"table={path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"table={path} is not UTF-8 at byte {error.start}") from error
    found = {}
    for line in lines:
        word, *others = (tuple(tokenizer.encode(part)) for part in line.split("\t") if part)
        alike = [other for other in others if len(other) == len(word) and other != word]
        if word and alike:
            found[word] = alike[:neighbors]
    return found


@dataclass(frozen=True)
class _Sentences:
    """The sentences of a split as words, each by its ids: "17 5". Each pass reads them from disk."""

    reader: TextReader

    def __iter__(self) -> Iterator[list[str]]:
        for shard, blocks in enumerate(self.reader.blocks_per_shard):
            for block in range(blocks):
                tokens, sentences, words = self.reader.read_block(shard, block)
                assert words is not None
                yield from _words_of(tokens, sentences, words)


def _words_of(
    tokens: npt.NDArray[np.integer], sentences: npt.NDArray[np.int64], words: npt.NDArray[np.bool_]
) -> Iterator[list[str]]:
    for part, begins in zip(np.split(tokens, sentences[1:]), np.split(words, sentences[1:]), strict=True):
        found = np.split(part, np.flatnonzero(begins))
        yield [" ".join(map(str, word.tolist())) for word in found if len(word)]


def _from_vectors(sentences: _Sentences, config: SimilarConfig) -> dict[Word, list[Word]]:
    """The same vectors in every run: one thread, and a hash that Python does not salt."""
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise InputError(
            "word vectors need gensim: install pretraining with the extra zh (pip install 'pretraining[zh]'), or give "
            "table=FILE"
        ) from error
    made = Word2Vec(
        sentences,
        vector_size=config.vector_size,
        min_count=config.min_count,
        epochs=config.epochs,
        seed=config.seed,
        max_final_vocab=_MOST_WORDS,
        workers=1,
        hashfxn=_hash,
    ).wv
    words: list[Word] = [tuple(map(int, key.split())) for key in made.index_to_key]
    vectors = made.vectors / np.maximum(np.linalg.norm(made.vectors, axis=1, keepdims=True), 1e-12)
    sizes = np.array([len(word) for word in words])
    found: dict[Word, list[Word]] = {}
    for size in np.unique(sizes):
        at = np.flatnonzero(sizes == size)
        found |= nearest([words[i] for i in at], vectors[at], config.neighbors)
    return found


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def nearest(words: Sequence[Word], vectors: npt.NDArray[np.float32], count: int) -> Mapping[Word, list[Word]]:
    """vectors: [words, features] of length 1 -> for each word the `count` others with the most similar vectors."""
    found: dict[Word, list[Word]] = {}
    for first in range(0, len(words), _ROWS):
        similar = vectors[first : first + _ROWS] @ vectors.T
        similar[np.arange(len(similar)), np.arange(first, first + len(similar))] = -np.inf
        order = np.argsort(-similar, axis=1, kind="stable")[:, : min(count, len(words) - 1)]
        found |= {words[first + row]: [words[i] for i in others] for row, others in enumerate(order) if len(others)}
    return found


if __name__ == "__main__":
    sys.exit(main())
