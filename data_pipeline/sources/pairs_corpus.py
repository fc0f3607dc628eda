"""Pairs of texts as `pretrain-data` prepares them: a document is the source's tokens and then the target's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from data_pipeline.prepare_config import PrepareConfig
from data_pipeline.sources.pairs import PairsConfig, PairsSource, sides
from data_pipeline.sources.scan import Hashed, hashed
from data_pipeline.sources.text import RawSource
from data_pipeline.sources.text_corpus import TextCorpus
from data_pipeline.tokenizers.encoding import Encode
from data_pipeline.tokenizers.tokenizer import Tokenizer


def encode_pair(tokenizer: Tokenizer, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
    """-> the ids of both sides, encoded apart, and where each begins (int64 [2])."""
    source, target = map(tokenizer.encode, sides(text))
    return source + target, np.array([0, len(source)], np.int64)


class PairsCorpus(TextCorpus):
    """See Corpus. Shards are those of text (shards/text.py), each document with two sentences, its sides. The hash of
    the source decides the split: where one sentence has several translations, all of them are in the same."""

    kind = "pairs"

    def _open_source(self, config: PrepareConfig) -> RawSource:
        assert isinstance(config.corpus, PairsConfig)
        return PairsSource(config.corpus)

    def _own_settings(self, config: PrepareConfig) -> dict[str, object]:
        assert isinstance(config.corpus, PairsConfig)
        kept = ("source_field", "target_field")
        return {f"corpus.{key}": getattr(config.corpus, key) for key in kept}

    def _encoder(self) -> Encode:
        return encode_pair

    def _hashed(self) -> Iterator[Hashed]:
        return hashed(self._documents(), self._config.seed, lambda text: sides(text)[0])

    def _makes_tokens(self, tokenizer: Tokenizer, text: str) -> bool:
        return all(super(PairsCorpus, self)._makes_tokens(tokenizer, side) for side in sides(text))
