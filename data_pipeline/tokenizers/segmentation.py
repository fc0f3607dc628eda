"""Words by a segmenter, for scripts that write none of their borders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError

Segmenter = Callable[[str], Iterable[str]]  # a text -> its words in their order, which join to it


def make_segmenter(name: str) -> Segmenter:
    """name: jieba. Raises InputError where its library is not installed."""
    assert name == "jieba", name
    try:
        import jieba
    except ImportError as error:
        raise InputError(
            "tokenizer.words=jieba needs jieba: install pretraining with the extra zh (pip install 'pretraining[zh]')"
        ) from error
    made = jieba.Tokenizer()
    # Not by its initialize(): that unmarshals a cache in the folder for temporary files, where anybody may have put one
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    return lambda text: made.cut(text, HMM=False)  # by the dictionary alone: the same words in every text


def word_starts(spelled: Sequence[bytes], segment: Segmenter) -> npt.NDArray[np.bool_]:
    """spelled: what each token of a text spells, in UTF-8 or a part of it -> bool [tokens], True where a token begins
    where a word does; one that begins within a word does not."""
    sizes = np.array([len(s) for s in spelled], np.int64)
    text = b"".join(spelled).decode(errors="surrogateescape")  # as many bytes again
    words = np.array([len(w.encode(errors="surrogateescape")) for w in segment(text)], np.int64)
    borders = np.cumsum(words) - words
    return np.isin(np.cumsum(sizes) - sizes, borders) & (sizes > 0)
