"""Text as `pretrain-data` prepares it: a tokenizer, then tokenized documents."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import to_dict
from data_pipeline.common.files import is_folder, join
from data_pipeline.common.progress import PassProgress, counted
from data_pipeline.prepare_config import PrepareConfig
from data_pipeline.shards.continuation import Scan
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.tar import Index
from data_pipeline.shards.text import BlockWriter, TextIndex, TokenizedDocument, WordsIndex
from data_pipeline.sources.corpus import Vocabulary
from data_pipeline.sources.scan import Hashed, Scanner, hashed, listing_hash, scan_documents, split_of
from data_pipeline.sources.text import RawDocument, RawSource, TextConfig, TextSource
from data_pipeline.tokenizers.encoding import Encode, encode_documents
from data_pipeline.tokenizers.segmentation import make_segmenter
from data_pipeline.tokenizers.tokenizer import Tokenizer

_FEW_DOCUMENTS = 20
_LEAST_CUT = 16  # bytes that corpus.max_document_bytes is at least
_CHECK_BYTES = 1_000_000  # of text, on which a tokenizer from elsewhere is tried


class TextCorpus:
    """See Corpus. Nothing of a document is kept between the two passes but a sample to train the tokenizer on."""

    kind = "text"

    def __init__(self, config: PrepareConfig) -> None:
        self._config, self._source = config, self._open_source(config)
        _check_smoothing(config)
        self._words = config.tokenizer.words or ""
        if self._words:
            make_segmenter(self._words)  # at once, where it is not installed
        self.index_type: type[Index] = WordsIndex if self._words else TextIndex
        path = config.tokenizer.path
        self._languages = config.tokenizer.languages
        given = Tokenizer.from_file(path, config.tokenizer.special_tokens) if path else None
        self._given = given.with_languages(self._languages) if given else None
        self._scanner: Scanner | None = None
        self.settings = _settings(config, self._own_settings(config), self._given)
        self.listing = listing_hash(self._source.files)

    def _open_source(self, config: PrepareConfig) -> RawSource:
        assert isinstance(config.corpus, TextConfig)
        return TextSource(config.corpus, skip=os.path.realpath(config.output))

    def _own_settings(self, config: PrepareConfig) -> dict[str, object]:
        """What of config.corpus decides the output, the inputs apart."""
        assert isinstance(config.corpus, TextConfig)
        kept = ("text_field", "encoding", "max_document_bytes")
        return {f"corpus.{key}": getattr(config.corpus, key) for key in kept}

    def _encoder(self) -> Encode:
        return Tokenizer.encode_with_starts

    def _hashed(self) -> Iterator[Hashed]:
        """Every document, with the hash that decides its split."""
        return hashed(self._documents(), self._config.seed)

    def _makes_tokens(self, tokenizer: Tokenizer, text: str) -> bool:
        return _has_word(text) or bool(tokenizer.encode(text))

    def needs_scan(self, root: str) -> bool:
        """The scan itself is in plan.json; only a tokenizer needs the sample."""
        return not is_folder(join(root, "tokenizer"))

    def scan(self) -> Scan:
        wanted = self._config.tokenizer
        sample_bytes = min(wanted.sample_bytes, _CHECK_BYTES) if wanted.path else wanted.sample_bytes
        count_characters = wanted.path is None and wanted.model_type == "char"
        self._scanner = Scanner(self._config.valid_fraction, sample_bytes, count_characters, wanted.smoothing)
        scan_documents(self._hashed(), self._scanner)
        scan, files = self._scanner.result(), len(self._source.files)
        self._report()
        if scan.documents == 0:
            why, named = _in_parentheses(self._source), ", ".join(self._source.files[:3])
            more = " contains" if files == 1 else f" and {files - 3} more contain" if files > 3 else " contain"
            raise InputError(f"the corpus is empty: {named}{more} no text{why}")
        if scan.documents == scan.valid_documents:
            raise InputError(_too_few(scan, self._config.valid_fraction))
        size = f"{scan.bytes / 1e6:.1f} MB of text in {counted(files, 'file')}"
        print(f"{counted(scan.documents, 'document')}, {size}")
        if scan.documents < _FEW_DOCUMENTS:
            print(f"warning: {_few(scan)}")
        return scan

    def vocabulary(self, root: str) -> Vocabulary:
        folder = join(root, "tokenizer")
        if is_folder(folder):
            return Vocabulary(Tokenizer.load(folder), words=self._words)
        assert self._scanner is not None, "needs_scan() asks for a scan where there is no tokenizer"
        if self._given is None:
            return Vocabulary(self._train(self._scanner).with_languages(self._languages), words=self._words)
        print(f"tokenizer.path={self._config.tokenizer.path}: {self._given.describe_special()}")
        _warn_if_inexact(self._given, self._scanner.sample.texts())
        return Vocabulary(self._given, words=self._words)

    def writer(self, root: str, split: str, first: int) -> BlockWriter:
        config = self._config
        return BlockWriter(root, split, config.block_tokens, config.shard_bytes, first, bool(self._words))

    def documents(self, root: str, scan: Scan, done: Mapping[str, int]) -> Iterator[tuple[str, TokenizedDocument]]:
        texts, folder = self._texts(scan, done), join(root, "tokenizer")
        return encode_documents(texts, folder, self._config.num_workers, self._encoder(), self._words)

    def summary(self, manifest: Manifest, scan: Scan) -> str:
        assert manifest.tokenizer is not None
        tokens = max(1, sum(split.tokens for split in manifest.splits.values()))
        lines = [
            f"{name:>6}: {counted(split.documents, 'document')}, {counted(split.tokens, 'token')}, "
            f"{counted(len(split.shards), 'shard')}"
            for name, split in manifest.splits.items()
        ]
        return "\n".join([*lines, f"{scan.bytes / tokens:.2f} bytes per token, {manifest.tokenizer.vocab_size} pieces"])

    def _documents(self) -> Iterator[RawDocument]:
        """Those of which the tokenizer makes any token: one from elsewhere may strip spaces and control characters."""
        for document in self._source.documents():
            if self._given is None or self._makes_tokens(self._given, document.text):
                yield document
            else:
                self._source.left_out.add("documents of which the tokenizer makes no token")

    def _report(self) -> None:
        """Says what the pass has left out or could not read as it is."""
        source = self._source
        if str(source.left_out):
            print(source.left_out)
        if source.bad_lines:
            print(f"warning: {len(source.bad_lines)} unreadable lines skipped; the first: {source.bad_lines[0]}")
        if source.encodings:
            found = ", ".join(f"{number} as {name}" for name, number in sorted(source.encodings.items()))
            print(f"files read in other encodings than UTF-8: {found}; {source.replaced} characters replaced by U+FFFD")

    def _train(self, scanner: Scanner) -> Tokenizer:
        from data_pipeline.tokenizers.sentencepiece_model import training_memory_bytes

        wanted, sample = self._config.tokenizer, scanner.sample
        if wanted.model_type == "byte":
            return Tokenizer.of_bytes()
        if wanted.model_type == "char":
            return Tokenizer.from_characters(scanner.characters, wanted.vocab_size)
        memory = sample.bytes + training_memory_bytes(wanted.model_type, sample.bytes)
        print(
            f"training a {wanted.model_type} tokenizer of {wanted.vocab_size} pieces on "
            f"{sample.bytes / 1e6:.1f} MB; this takes up to {memory / 1e9:.2f} GB of memory",
            flush=True,
        )
        started = time.monotonic()
        tokenizer = Tokenizer.train(sample.texts(), wanted.model_type, wanted.vocab_size)
        print(f"trained in {time.monotonic() - started:.1f} s")
        return tokenizer

    def _texts(self, scan: Scan, done: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """(split, text) of each document but the first `done` of its split. InputError: the text has changed."""
        to_skip, config = dict(done), self._config
        again = Scanner(config.valid_fraction, sample_bytes=0, count_characters=False)
        with PassProgress("tokenizing", scan.bytes) as progress:
            for document in self._hashed():
                again.take(document)
                progress.add(document.size)
                split = split_of(document.split_hash, scan.smallest_hash, config.valid_fraction)
                if to_skip[split]:
                    to_skip[split] -= 1
                else:
                    yield split, document.text
        if again.result() != scan:
            raise InputError(
                f"the files of corpus.inputs changed while they were read; remove {config.output} and start again"
            )


def _in_parentheses(source: RawSource) -> str:
    """Why a corpus is empty, as far as anything of it was read."""
    reasons = [str(source.left_out)] if str(source.left_out) else []
    if source.bad_lines:
        reasons.append(f"{counted(len(source.bad_lines), 'unreadable line')} skipped")
    return f" ({'; '.join(reasons)})" if reasons else ""


def _has_word(text: str) -> bool:
    """Whether its beginning makes tokens for sure, so that it need not be encoded to know."""
    return any(character.isalnum() for character in text[:1000])


def _too_few(scan: Scan, valid_fraction: float) -> str:
    part = max(_LEAST_CUT, scan.bytes // 20)
    cut = f", or let corpus.max_document_bytes={part} cut long ones at line ends" if scan.bytes > 2 * part else ""
    found = counted(scan.documents, "document")
    if scan.documents > 1:
        return (
            f"the corpus has {found}, and all go to validation with valid_fraction={valid_fraction}: equal documents "
            f"are never split, so that none is learned and validated on. Give documents that differ{cut}"
        )
    return (
        f"the corpus has {found}; validation takes at least one, which leaves none to train on. A file of .txt is one "
        f"document: give several files, or a .jsonl file with a document in each line{cut}"
    )


def _few(scan: Scan) -> str:
    part = max(_LEAST_CUT, scan.bytes // 100)
    return (
        f"only {scan.documents} documents, {scan.valid_documents} of them for validation: training shuffles whole "
        f"documents, and a loss on so few says little. corpus.max_document_bytes={part} would cut them at line ends "
        "into more"
    )


def _check_smoothing(config: PrepareConfig) -> None:
    smoothing = config.tokenizer.smoothing
    if smoothing != 1.0 and not (isinstance(config.corpus, TextConfig) and len(config.corpus.inputs) > 1):
        raise InputError(
            f"tokenizer.smoothing={smoothing} lifts small entries of corpus.inputs, as in [wiki/en,wiki/sw]: it needs "
            "corpus=text with several of them"
        )


def _settings(config: PrepareConfig, own: Mapping[str, object], given: Tokenizer | None) -> dict[str, Any]:
    trained = {f"tokenizer.{key}": value for key, value in to_dict(config.tokenizer).items()}
    for key, without in (("tokenizer.languages", []), ("tokenizer.smoothing", 1.0)):
        if trained[key] == without:  # then plan.json is as it was before there was the key
            del trained[key]
    del trained["tokenizer.path"], trained["tokenizer.special_tokens"], trained["tokenizer.words"]
    words = {} if config.tokenizer.words is None else {"tokenizer.words": config.tokenizer.words}
    return {
        "corpus.kind": config.corpus.kind,
        **own,
        **(trained if given is None else {"tokenizer.path": given.fingerprint}),
        **words,
        "valid_fraction": config.valid_fraction,
        "seed": config.seed,
        "block_tokens": config.block_tokens,
        "shard_bytes": config.shard_bytes,
        "min_shards": config.min_shards,
    }


def _warn_if_inexact(tokenizer: Tokenizer, texts: list[str]) -> None:
    changed = sum(tokenizer.decode(tokenizer.encode(text)) != text for text in texts)
    if changed:
        print(
            f"warning: the tokenizer of tokenizer.path does not reproduce every text: {changed} of {len(texts)} "
            "sampled documents are different after encoding and decoding"
        )
