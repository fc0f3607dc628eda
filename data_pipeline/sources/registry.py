"""The table that `kind` in the group corpus picks from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """config: "module:Class" of what is read."""

    config: str


CORPORA: dict[str, Corpus] = {
    "text": Corpus("data_pipeline.sources.text:CorpusConfig"),
    "images": Corpus("data_pipeline.sources.images:ImagesConfig"),
}
