"""`pretrain-data`: raw files -> tokenizer, shards and manifest."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, InputError
from data_pipeline.common.fields import (
    Fraction,
    NonNegative,
    PickedBy,
    Positive,
    configclass,
    to_dict,
    unused_with,
)
from data_pipeline.sources.images import ImagesConfig
from data_pipeline.sources.text import CorpusConfig, TextSource
from data_pipeline.tokenizers.tokenizer import Tokenizer, TokenizerConfig

if TYPE_CHECKING:
    from data_pipeline.shards.manifest import Manifest
    from data_pipeline.sources.scan import Scan, Scanner

_CHECK_BYTES = 1_000_000  # of text, on which a ready tokenizer is tried
_ABOUT = """pretrain-data: turns raw text into a tokenizer, shards and a manifest; images into shards and a manifest.

Example:
  pretrain-data corpus.inputs=[books,'notes/*.md'] output=data/books tokenizer.vocab_size=8192
  pretrain-data corpus=images corpus.inputs=[photos] output=data/photos
"""


@configclass
class PrepareConfig:
    """Everything that `pretrain-data` takes.

    corpus: what is read.
    output: the folder to write; one that is not finished is continued.
    tokenizer: how text becomes tokens.
    valid_fraction: share of the documents or images that go to validation, by hash; at least one does.
    num_workers: processes that tokenize or decode; what is written does not depend on it.
    seed: of the hash that decides what goes to validation.
    block_tokens: tokens of a block, the unit that training shuffles.
    shard_bytes: size of a shard, about.
    """

    corpus: Annotated[CorpusConfig | ImagesConfig, PickedBy("data_pipeline.sources.registry:CORPORA", key="kind")]
    output: str
    tokenizer: Annotated[TokenizerConfig, unused_with("corpus.kind", "images")] = Field(default_factory=TokenizerConfig)
    valid_fraction: Fraction = 0.01
    num_workers: NonNegative = 2
    seed: NonNegative = 1
    block_tokens: Annotated[Positive, unused_with("corpus.kind", "images")] = 65536
    shard_bytes: Positive = 67108864


def main() -> int:
    """The console script; -> exit code."""
    return run_command(_command, _ABOUT, "prepare", PrepareConfig)


def prepare(config: PrepareConfig) -> None:
    """Writes `config.output`, or continues what was begun there. After an InputError nothing was replaced."""
    from data_pipeline.shards.continuation import (
        Continuation,
        check_corpus,
        check_settings,
        listing_hash,
        load_continuation,
        locked,
    )

    started = time.monotonic()
    assert isinstance(config.corpus, CorpusConfig)
    root, source = Path(config.output), TextSource(config.corpus)
    ready = Tokenizer.from_file(config.tokenizer.path) if config.tokenizer.path else None
    settings, listing = _settings(config, ready), listing_hash(source.files)
    plan = load_continuation(root)
    if plan is not None:
        check_settings(root, plan, settings)
    unchanged = plan is not None and plan.listing == listing
    if unchanged and _is_complete(root):
        print(f"{root} is already complete")
        return
    scanner = None
    if plan is not None and unchanged and (root / "tokenizer").is_dir():
        scan = plan.scan
    else:
        scan, scanner = _scan(config, source)
    if plan is not None:
        check_corpus(root, plan, scan)
    with locked(root):
        tokenizer = _make_tokenizer(config, ready, scanner)
        Continuation(settings, listing, scan).save(root)  # only now: a vocabulary that is refused leaves no plan behind
        if not (root / "tokenizer").is_dir():
            tokenizer.save(root / "tokenizer")
        _write_shards(config, source, scan)
        manifest = _write_manifest(config, tokenizer)
    print(_summary(manifest, scan, time.monotonic() - started))


def _command(overrides: list[str]) -> int:
    config = compose_config("prepare", overrides, PrepareConfig)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
    try:
        if isinstance(config.corpus, ImagesConfig):
            from data_pipeline.prepare_images import prepare_images

            prepare_images(config)
        else:
            prepare(config)
        return EXIT_DONE
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
    except BrokenProcessPool:
        print("a worker process was killed (out of memory?); the same command continues", file=sys.stderr)
    except OSError as error:  # the corpus's own faults are InputError: this is a fault of the output
        raise InputError(f"output={config.output}: {error.strerror or error} {error.filename or ''}") from error
    return EXIT_REQUEUE


def _settings(config: PrepareConfig, ready: Tokenizer | None) -> dict[str, Any]:
    """What decides the output, the text apart: keys and values."""
    corpus = {key: getattr(config.corpus, key) for key in ("kind", "text_field", "max_document_bytes")}
    trained = {key: value for key, value in to_dict(config.tokenizer).items() if key != "path"}
    chosen = {"tokenizer.path": ready.fingerprint} if ready else {f"tokenizer.{k}": v for k, v in trained.items()}
    keys = ("valid_fraction", "seed", "block_tokens", "shard_bytes")
    return {
        **{f"corpus.{k}": v for k, v in corpus.items()},
        **chosen,
        **{k: getattr(config, k) for k in keys},
    }


def _is_complete(root: Path) -> bool:
    from data_pipeline.shards.manifest import check_files, load_manifest

    if not (root / "manifest.json").is_file():
        return False
    try:
        check_files(load_manifest(root))
    except InputError as error:
        print(f"{error}\nthe missing shards are written again")
        return False
    return True


def _scan(config: PrepareConfig, source: TextSource) -> tuple[Scan, Scanner]:
    """The first pass. Raises InputError where the corpus doesn't give two splits."""
    from data_pipeline.sources.scan import Scanner, hashed, scan_documents

    wanted = config.tokenizer
    sample_bytes = min(wanted.sample_bytes, _CHECK_BYTES) if wanted.path else wanted.sample_bytes
    count_characters = wanted.path is None and wanted.model_type == "char"
    scanner = Scanner(config.valid_fraction, sample_bytes, count_characters)
    scan_documents(hashed(source.documents(), config.seed), scanner)
    scan = scanner.result()
    if scan.documents == 0:
        raise InputError(f"the corpus is empty: no text in the {len(source.files)} files of corpus.inputs")
    if scan.documents == scan.valid_documents:
        raise InputError(
            f"the corpus has {scan.documents} document(s), and validation takes at least one: none is left to train on"
        )
    print(f"{scan.documents} documents, {scan.bytes / 1e6:.1f} MB of text in {len(source.files)} files")
    if source.bad_lines:
        print(f"warning: {len(source.bad_lines)} lines left out, the first: {source.bad_lines[0]}")
    return scan, scanner


def _make_tokenizer(config: PrepareConfig, ready: Tokenizer | None, scanner: Scanner | None) -> Tokenizer:
    """The one that is there already, or a ready or a trained one."""
    folder = Path(config.output) / "tokenizer"
    if folder.is_dir():
        return Tokenizer.load(folder)
    assert scanner is not None, "without a tokenizer the first pass is made"
    if ready is not None:
        _warn_if_inexact(ready, scanner.sample.texts())
    return ready or _train(config.tokenizer, scanner)


def _train(config: TokenizerConfig, scanner: Scanner) -> Tokenizer:
    from data_pipeline.tokenizers.sentencepiece_model import training_memory_bytes

    if config.model_type == "char":
        return Tokenizer.from_characters(scanner.characters, config.vocab_size)
    sample = scanner.sample
    memory = sample.bytes + training_memory_bytes(config.model_type, sample.bytes)
    print(
        f"training a {config.model_type} tokenizer of {config.vocab_size} pieces on "
        f"{sample.bytes / 1e6:.1f} MB; this takes up to {memory / 1e9:.2f} GB of memory",
        flush=True,
    )
    started = time.monotonic()
    tokenizer = Tokenizer.train(sample.texts(), config.model_type, config.vocab_size)
    print(f"trained in {time.monotonic() - started:.1f} s")
    return tokenizer


def _warn_if_inexact(tokenizer: Tokenizer, texts: list[str]) -> None:
    changed = sum(tokenizer.decode(tokenizer.encode(text)) != text for text in texts)
    if changed:
        print(
            f"warning: tokenizer.path does not give text back exactly: {changed} of {len(texts)} sampled "
            "documents change on the way to tokens and back"
        )


def _write_shards(config: PrepareConfig, source: TextSource, scan: Scan) -> None:
    """The second pass: every document is read; those in finished shards are skipped, the others encoded."""
    from data_pipeline.shards.manifest import SPLITS
    from data_pipeline.shards.text import ShardWriter, finished_shards, remove_temporaries
    from data_pipeline.tokenizers.encoding import encode_documents

    root = Path(config.output)
    finished = {split: finished_shards(root, split) for split in SPLITS}
    done = {split: sum(len(index.lengths) for _, index in finished[split]) for split in SPLITS}
    if any(done.values()):
        print(f"continuing after {done['train']} training and {done['valid']} validation documents")
    remove_temporaries(root)
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(root, split, config.block_tokens, config.shard_bytes, first=len(finished[split]))
            )
            for split in SPLITS
        }
        unfinished = _unfinished(config, source, scan, done)
        for split, document in encode_documents(unfinished, root / "tokenizer", config.num_workers):
            writers[split].add(document)


def _unfinished(
    config: PrepareConfig, source: TextSource, scan: Scan, done: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """(split, text) of each document but the first `done` of its split. InputError: the text has changed."""
    from data_pipeline.common.progress import PassProgress
    from data_pipeline.sources.scan import Scanner, hashed, split_of

    to_skip = dict(done)
    again = Scanner(config.valid_fraction, sample_bytes=0, count_characters=False)
    with PassProgress("tokenizing", scan.bytes) as progress:
        for document in hashed(source.documents(), config.seed):
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


def _write_manifest(config: PrepareConfig, tokenizer: Tokenizer) -> Manifest:
    from data_pipeline.shards.manifest import SPLITS, Manifest, TokenizerInfo, save_manifest
    from data_pipeline.shards.text import describe_split

    root = Path(config.output)
    info = TokenizerInfo(tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.total_size)
    splits = {split: describe_split(root, split) for split in SPLITS}
    manifest = Manifest(str(root), "text", info, config.seed, config.valid_fraction, splits)
    save_manifest(manifest)
    return manifest


def _summary(manifest: Manifest, scan: Scan, seconds: float) -> str:
    assert manifest.tokenizer is not None
    tokens = sum(split.tokens for split in manifest.splits.values())
    lines = [
        f"{name:>6}: {split.documents} documents, {split.tokens} tokens, {len(split.shards)} shards"
        for name, split in manifest.splits.items()
    ]
    return "\n".join(
        [
            *lines,
            f"{scan.bytes / tokens:.2f} bytes per token, {manifest.tokenizer.vocab_size} pieces, "
            f"{seconds:.1f} s; written to {manifest.root}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
