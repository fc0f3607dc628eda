"""similar.npz beside a tokenizer: for words, given as their pieces, words of similar use and of as many pieces each.

Arrays of int64, one word after another: `sizes`, its pieces; `words`, their ids; `counts`, how many similar words it
has; `similar`, the ids of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, is_file, join, read_bytes
from data_pipeline.shards.arrays import Malformed, read_arrays, write_arrays

FILE = "similar.npz"
MAX_BYTES = 1 << 30
_KINDS = dict.fromkeys(("sizes", "words", "counts", "similar"), "i8")

Ids = npt.NDArray[np.int64]
Word = tuple[int, ...]


class SimilarWords:
    """data: of a similar.npz. Raises Malformed where it is none, or has ids from `total_size` on."""

    def __init__(self, data: bytes, total_size: int) -> None:
        arrays = read_arrays(data, _KINDS)
        self.sha256 = hashlib.sha256(data).hexdigest()
        sizes, counts = arrays["sizes"], arrays["counts"]
        if len(sizes) != len(counts) or min(sizes.min(initial=1), counts.min(initial=1)) < 1:
            raise Malformed("words without pieces, or without similar words")
        if max(sizes.max(initial=0), counts.max(initial=0)) > len(arrays["similar"]):  # so that no sum overflows
            raise Malformed("words of more pieces, or with more similar words, than there are")
        if sizes.sum() != len(arrays["words"]) or (sizes * counts).sum() != len(arrays["similar"]):
            raise Malformed("its arrays are not of the lengths that they state")
        ids = np.concatenate([arrays["words"], arrays["similar"]])
        if len(ids) and not 0 <= ids.min() <= ids.max() < total_size:
            raise Malformed(f"ids that are not from 0 to {total_size - 1}")
        words = np.split(arrays["words"], np.cumsum(sizes)[:-1])
        similar = np.split(arrays["similar"], np.cumsum(sizes * counts)[:-1])
        self._table = {
            word.tobytes(): found.reshape(-1, size) for word, found, size in zip(words, similar, sizes, strict=False)
        }

    def __len__(self) -> int:
        return len(self._table)

    def of(self, word: Ids) -> Ids | None:
        """word: int64 [pieces] -> [similar words, pieces]; None where it has none."""
        return self._table.get(word.tobytes())


def encode_similar(table: Mapping[Word, Sequence[Word]]) -> bytes:
    """The bytes of a similar.npz. table: a word's ids -> those of similar words, of as many pieces each."""
    words = list(table.items())
    assert all(len(one) == len(word) for word, found in words for one in found)
    arrays = {
        "sizes": [len(word) for word, _ in words],
        "words": [i for word, _ in words for i in word],
        "counts": [len(found) for _, found in words],
        "similar": [i for _, found in words for one in found for i in one],
    }
    return write_arrays({name: np.array(values, np.int64) for name, values in arrays.items()})


def load_similar(folder: Location, total_size: int) -> SimilarWords | None:
    """Of a tokenizer's folder; None where it has none. Raises InputError where it is broken."""
    path = join(folder, FILE)
    if not is_file(path):
        return None
    try:
        return SimilarWords(read_bytes(path, MAX_BYTES), total_size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Malformed as error:
        raise InputError(f"{path} is no table of similar words: {error}") from error
