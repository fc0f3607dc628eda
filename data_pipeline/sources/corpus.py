"""The contract of a corpus: what `pretrain-data` needs to know of one kind of raw data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from data_pipeline.common.files import is_folder, join
from data_pipeline.shards.continuation import Scan
from data_pipeline.shards.manifest import Manifest, TokenizerInfo
from data_pipeline.shards.tar import Index
from data_pipeline.tokenizers.tokenizer import Tokenizer

Document = TypeVar("Document")
DocumentIn = TypeVar("DocumentIn", contravariant=True)


@dataclass(frozen=True)
class Vocabulary:
    """What a model predicts: ids of a tokenizer, or classes by their numbers. words: the segmenter whose word borders
    the shards have, if any."""

    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] = ()
    words: str = ""

    @property
    def tokenizer_info(self) -> TokenizerInfo | None:
        """As the manifest describes it."""
        made = self.tokenizer
        if made is None:
            return None
        similar = "" if made.similar is None else made.similar.sha256
        return TokenizerInfo(made.fingerprint, made.vocab_size, made.total_size, self.words, similar)

    def save(self, root: str) -> None:
        """Writes ROOT/tokenizer where there is one and it is not there yet."""
        folder = join(root, "tokenizer")
        if self.tokenizer is not None and not is_folder(folder):
            self.tokenizer.save(folder)


class DocumentWriter(Protocol[DocumentIn]):
    """Takes the documents of one split. On a normal exit the rest is written; on an exception it is not."""

    def add(self, document: DocumentIn) -> None: ...

    def end_shard(self) -> None:
        """The next document begins another shard."""
        ...

    def __enter__(self) -> DocumentWriter[DocumentIn]: ...

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None: ...


class Corpus(Protocol[Document]):
    """Raw files of one kind, made by `Corpus(config: PrepareConfig)` from the table in registry.py.

    kind: in the manifest; it decides which reader the shards have. settings: what decides the output, the inputs
    apart, in the order in which plan.json lists it. listing: a hash of the inputs' paths, sizes and times.
    index_type: of its shards. Raises InputError, from each method, that names the file.
    """

    kind: str
    settings: dict[str, Any]
    listing: str
    index_type: type[Index]

    def needs_scan(self, root: str) -> bool:
        """Whether `scan` is needed to continue what was started in `root` from the same inputs."""
        ...

    def scan(self) -> Scan:
        """The first pass. Raises InputError where the inputs don't give two splits."""
        ...

    def vocabulary(self, root: str) -> Vocabulary:
        """The one in `root`, or a new one; writes nothing."""
        ...

    def writer(self, root: str, split: str, first: int) -> DocumentWriter[Document]:
        """Of the shards from number `first` on."""
        ...

    def documents(self, root: str, scan: Scan, done: Mapping[str, int]) -> Iterator[tuple[str, Document]]:
        """The second pass: (split, document) in a fixed order, without the first `done` of each split.

        Raises InputError where the inputs are no longer those of `scan`.
        """
        ...

    def summary(self, manifest: Manifest, scan: Scan) -> str:
        """What was written, for a person: a line a split, then what holds of all."""
        ...
