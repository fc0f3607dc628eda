"""Prepared data of either kind, as a model and an objective need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.common.errors import InputError
from data_pipeline.shards.images import ImageReader
from data_pipeline.shards.manifest import check_files, load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.stream.stream import Reader
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import RunConfig
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec


def sample_spec(config: RunConfig, tokenizer: Tokenizer | None, classes: Sequence[str]) -> SampleSpec:
    """What the samples of a run must fit. tokenizer: None for images; classes: empty for text."""
    if tokenizer is None:
        return SampleSpec(grid=config.grid, classes=tuple(classes))
    return SampleSpec(seq_len=config.seq_len, tokenizer=tokenizer, packs_documents=config.model.packs_documents)


def vocabulary_of(tokenizer: Tokenizer | None, classes: Sequence[str]) -> Vocabulary:
    """What a model must know of the prepared data. tokenizer: None for images; classes: empty for text."""
    if tokenizer is None:
        return Vocabulary(classes=len(classes))
    return Vocabulary(tokenizer.total_size, tokenizer.special_ids)


class Prepared:
    """What pretrain-data wrote to `data.path`.

    spec: what an objective's samples must fit. vocabulary: what a model reads and predicts. Raises InputError where
    files are missing, or where model and objective are for another kind of data.
    """

    def __init__(self, config: RunConfig) -> None:
        self.root = Path(config.data.path or "")
        self.manifest = load_manifest(self.root)
        if self.manifest.kind != config.data_kind:
            raise InputError(
                f"data.path={config.data.path} holds {self.manifest.kind}, objective="
                f"{config.objective.name} needs {config.data_kind}"
            )
        check_files(self.manifest)
        self.tokenizer = self._load_tokenizer()
        self.spec = sample_spec(config, self.tokenizer, self.manifest.classes)
        self.vocabulary = vocabulary_of(self.tokenizer, self.manifest.classes)
        for key, stated in config.model.stated_outputs().items():
            if stated != self.vocabulary.outputs:
                raise InputError(
                    f"{key}={stated}, but data.path={config.data.path} was prepared with {self.vocabulary.outputs}"
                )

    def _load_tokenizer(self) -> Tokenizer | None:
        described = self.manifest.tokenizer
        if described is None:
            return None
        tokenizer = Tokenizer.load(self.root / "tokenizer")
        if tokenizer.fingerprint != described.fingerprint:
            raise InputError(
                f"{self.root / 'tokenizer'} is not the tokenizer that the shards were written with: its "
                f"fingerprint differs from {self.root / 'manifest.json'}"
            )
        return tokenizer

    def reader(self, split: str) -> Reader:
        return (TextReader if self.tokenizer else ImageReader)(self.manifest, split)
