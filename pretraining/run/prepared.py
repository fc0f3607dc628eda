"""Prepared data of any kind, as a model and an objective need them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.shards.images import ImageReader
from data_pipeline.shards.manifest import Manifest, TokenizerInfo, check_files, load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.stream.mixture import Corpus, Mixture
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.sequence_source import SequenceSource
from data_pipeline.stream.shares import smoothed_shares
from data_pipeline.stream.stream import Reader, Stream
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import RunConfig
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.registry import OBJECTIVES, ObjectiveEntry
from pretraining.objectives.text.masked_lm import MaskedLMConfig


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
    """What pretrain-data wrote to `data.path`, or to the folders of a mixture.

    manifests: by the corpora's names; of a single one by ''. spec: what an objective's samples must fit. vocabulary:
    what a model reads and predicts. Raises InputError where files are missing, where model and objective are
    for another kind of data, or where the corpora of a mixture don't have one tokenizer.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, objective, self.objective = config.data, config.objective, config.objective.name
        self.uses_similar = isinstance(objective, MaskedLMConfig) and objective.replacement == "similar"
        self.manifests = load_manifests(config.data.folders)
        self._check_kinds(OBJECTIVES[objective.name])
        for manifest in self.manifests.values():
            check_files(manifest)
        self.first = _alike(self.manifests)
        self.tokenizer = _tokenizer_of(self.first)
        self.spec = sample_spec(config, self.tokenizer, self.first.classes)
        self.vocabulary = vocabulary_of(self.tokenizer, self.first.classes)
        for key, stated in config.model.stated_outputs().items():
            if stated != self.vocabulary.outputs:
                where = self._named(self.first)
                raise InputError(f"{key}={stated}, but {where} was prepared with {self.vocabulary.outputs}")

    @property
    def is_mixture(self) -> bool:
        return self.config.name == "mixture"

    @property
    def fingerprint(self) -> str:
        """Of all that is read, and of the shares: equal on all ranks."""
        if not self.is_mixture:
            return self._with_table(self.first.fingerprint)
        contents = {name: manifest.fingerprint for name, manifest in sorted(self.manifests.items())}
        mixed = hashlib.sha256(json.dumps([contents, sorted(self.shares().items())]).encode()).hexdigest()
        return self._with_table(mixed)

    @property
    def bound(self) -> str:
        """Of what must stay as it is when a run is continued: of a mixture not its corpora, each of which its position
        knows, but the vocabulary that they have in common."""
        if not self.is_mixture:
            return self._with_table(self.first.fingerprint)
        info = self.first.tokenizer
        return self._with_table(
            info.fingerprint if info else hashlib.sha256(json.dumps(self.first.classes).encode()).hexdigest()
        )

    def _with_table(self, fingerprint: str) -> str:
        """With that of the table of similar words, where samples are made with one."""
        similar = self.first.tokenizer.similar if self.uses_similar and self.first.tokenizer else ""
        return hashlib.sha256(f"{fingerprint} {similar}".encode()).hexdigest() if similar else fingerprint

    def shares(self) -> dict[str, float]:
        """Of the samples, for each corpus of a mixture; they add up to 1."""
        if self.config.shares is not None:
            return smoothed_shares(self.config.shares, 1.0)
        splits = {name: manifest.splits["train"] for name, manifest in self.manifests.items()}
        return smoothed_shares({name: s.tokens or s.documents for name, s in splits.items()}, self.config.smoothing)

    def mixture_lines(self) -> list[str]:
        """What a mixture draws, in words."""
        if not self.is_mixture:
            return []
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        return [f"mixture: {', '.join(f'{name} {share:.3%}' for name, share in shares)} of the samples"]

    def reader(self, split: str, corpus: str = "") -> Reader:
        return (TextReader if self.tokenizer else ImageReader)(self.manifests[corpus], split)

    def source(
        self, split: str, packing_of: Callable[[str, str], Packing], seed: int, least_sequences: int = 0
    ) -> SequenceSource[Any]:
        """The order of one split's sequences. packing_of: of a corpus' name and kind. least_sequences: see Stream."""
        options = {"window_blocks": self.config.window_blocks, "least_sequences": least_sequences}
        streams = {
            name: Stream(self.reader(split, name), packing_of(name, manifest.kind), seed, **options)
            for name, manifest in self.manifests.items()
        }
        if not self.is_mixture:
            return streams[""]
        shares = self.shares()
        corpora = {name: Corpus(s, shares[name], self.manifests[name].fingerprint) for name, s in streams.items()}
        return Mixture(corpora, seed)

    def _check_kinds(self, objective: ObjectiveEntry) -> None:
        manifests = list(self.manifests.values())
        allowed = {objective.data, *(objective.beside if self.is_mixture else ())}
        wrong = [manifest for manifest in manifests if manifest.kind not in allowed]
        if not any(manifest.kind == objective.data for manifest in manifests):
            wrong = wrong or manifests
        if wrong:
            raise InputError(
                f"{self._named(wrong[0])} holds {wrong[0].kind}, objective={self.objective} needs {objective.data}"
            )

    def _named(self, manifest: Manifest) -> str:
        name = next(name for name, found in self.manifests.items() if found is manifest)
        return f"data.sources.{name}={manifest.root}" if self.is_mixture else f"data.path={manifest.root}"


def load_manifests(folders: Mapping[str, str]) -> dict[str, Manifest]:
    return {name: load_manifest(Path(folder)) for name, folder in folders.items()}


def _alike(manifests: Mapping[str, Manifest]) -> Manifest:
    """The first one. Raises InputError where the others have another vocabulary."""
    first = next(iter(manifests.values()))
    for name, manifest in manifests.items():
        if _without_table(manifest.tokenizer) != _without_table(first.tokenizer):
            raise InputError(
                f"data.sources: {manifest.root} ({name}) was prepared with another tokenizer than {first.root}; "
                f"tokenizer.path={first.root}/tokenizer prepares it with the same"
            )
        if manifest.classes != first.classes:
            raise InputError(f"data.sources: {manifest.root} ({name}) has other classes than {first.root}")
    return first


def _without_table(info: TokenizerInfo | None) -> TokenizerInfo | None:
    """Of similar words: that of a mixture's first corpus is used for all."""
    return None if info is None else replace(info, similar="")


def _tokenizer_of(manifest: Manifest) -> Tokenizer | None:
    described = manifest.tokenizer
    if described is None:
        return None
    folder = Path(manifest.root) / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != described.fingerprint:
        raise InputError(
            f"{folder} is not the tokenizer that the shards were written with: its fingerprint differs from "
            f"{Path(manifest.root) / 'manifest.json'}"
        )
    if ("" if tokenizer.similar is None else tokenizer.similar.sha256) != described.similar:
        raise InputError(f"{folder / 'similar.npz'} is not the one that {Path(manifest.root) / 'manifest.json'} names")
    return tokenizer
