"""Which corpora there are: `corpus.kind` picks one. A new kind of raw data is a file with its config, a file with its
Corpus, and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline.common.registry import load

if TYPE_CHECKING:
    from data_pipeline.prepare_config import PrepareConfig
    from data_pipeline.sources.corpus import Corpus


class CorpusEntry(NamedTuple):
    """Both as "module:Name"; corpus: a class that is made of the PrepareConfig."""

    config: str
    corpus: str


CORPORA = {
    "text": CorpusEntry("data_pipeline.sources.text:TextConfig", "data_pipeline.sources.text_corpus:TextCorpus"),
    "pairs": CorpusEntry("data_pipeline.sources.pairs:PairsConfig", "data_pipeline.sources.pairs_corpus:PairsCorpus"),
    "images": CorpusEntry(
        "data_pipeline.sources.images:ImagesConfig", "data_pipeline.sources.image_corpus:ImageCorpus"
    ),
}


def build_corpus(config: PrepareConfig) -> Corpus[Any]:
    """The corpus that `config.corpus` describes. Raises InputError where its files cannot be found."""
    corpus: Corpus[Any] = load(CORPORA[config.corpus.kind].corpus)(config)
    return corpus
