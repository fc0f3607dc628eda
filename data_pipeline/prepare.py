"""`pretrain-data`: raw files -> tokenizer or classes, shards and manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, InputError
from data_pipeline.common.files import is_file, is_local, join, remove_temporaries
from data_pipeline.common.supervise import supervised
from data_pipeline.prepare_config import PrepareConfig
from data_pipeline.sources.registry import build_corpus

if TYPE_CHECKING:
    from data_pipeline.shards.continuation import Scan
    from data_pipeline.sources.corpus import Corpus

_ABOUT = """pretrain-data: turns raw text into a tokenizer, shards and a manifest; images into shards and a manifest.

Example:
  pretrain-data corpus.inputs=[books,'notes/*.md'] output=data/books tokenizer.vocab_size=8192
  pretrain-data corpus=images corpus.inputs=[photos] output=data/photos
"""


def console() -> int:
    """The console script; -> exit code."""
    return supervised(main, "the same command continues")


def main() -> int:
    """-> exit code."""
    return run_command(_command, _ABOUT, "prepare", PrepareConfig)


def prepare(config: PrepareConfig) -> None:
    """Writes `config.output`, or continues what was started there. An InputError leaves what was there as it was."""
    if not is_local(config.output):
        raise InputError(f"output={config.output}: only a local folder can be written; copy it to its URL afterwards")
    write_dataset(build_corpus(config), config)


def write_dataset(corpus: Corpus[Any], config: PrepareConfig) -> None:
    """Two passes over the files of any corpus: the first decides the split, the second writes the shards."""
    from data_pipeline.shards import continuation
    from data_pipeline.shards.manifest import SPLITS, Manifest, save_manifest
    from data_pipeline.shards.tar import describe_split

    started, root = time.monotonic(), str(Path(config.output))
    before = continuation.load_continuation(root)
    if before is not None:
        continuation.check_settings(root, before, corpus.settings)
    unchanged = before is not None and before.listing == corpus.listing
    if unchanged and _is_complete(root):
        print(f"{root} is already complete")
        return
    scan = before.scan if before is not None and unchanged and not corpus.needs_scan(root) else corpus.scan()
    if before is not None:
        continuation.check_corpus(root, before, scan)
    with continuation.locked(root):
        vocabulary = corpus.vocabulary(root)
        # Only now: a vocabulary that is refused must not leave a plan.json that binds the next try to its settings.
        continuation.Continuation(corpus.settings, corpus.listing, scan).save(root)
        vocabulary.save(root)
        _write_shards(corpus, root, scan, config.min_shards)
        splits = {split: describe_split(root, split, corpus.index_type) for split in SPLITS}
        manifest = Manifest(
            root,
            corpus.kind,
            vocabulary.tokenizer_info,
            config.seed,
            config.valid_fraction,
            splits,
            vocabulary.classes,
        )
        save_manifest(manifest)
    print(f"{corpus.summary(manifest, scan)}, {time.monotonic() - started:.1f} s; written to {root}")


def _command(overrides: list[str]) -> int:
    config = compose_config("prepare", overrides, PrepareConfig)
    config = dataclasses.replace(config, output=os.path.expanduser(config.output))
    try:
        prepare(config)
        return EXIT_DONE
    except BrokenProcessPool:
        print("a worker process was killed (out of memory?); the same command continues", file=sys.stderr)
    except OSError as error:  # a corpus reports its own as InputError: this one is of the output
        raise InputError(f"output={config.output}: {error.strerror or error} {error.filename or ''}") from error
    return EXIT_REQUEUE


def _is_complete(root: str) -> bool:
    from data_pipeline.shards.manifest import check_files, load_manifest

    if not is_file(join(root, "manifest.json")):
        return False
    try:
        check_files(load_manifest(root))
    except InputError as error:
        print(f"{error}\nthe missing shards are written again")
        return False
    return True


def _write_shards(corpus: Corpus[Any], root: str, scan: Scan, min_shards: int) -> None:
    """The second pass: every document but those in finished shards."""
    from data_pipeline.shards.manifest import SPLITS
    from data_pipeline.shards.tar import finished_shards

    finished = {split: finished_shards(root, split, corpus.index_type) for split in SPLITS}
    done = {split: sum(index.num_documents for _, index in finished[split]) for split in SPLITS}
    if any(done.values()):
        print(f"continuing after {done['train']} training and {done['valid']} validation documents")
    for folder in (root, *(join(root, split) for split in SPLITS)):
        remove_temporaries(folder)
    documents = {"train": scan.documents - scan.valid_documents, "valid": scan.valid_documents}
    ends = {split: {documents[split] * i // min_shards for i in range(1, min_shards)} for split in SPLITS}
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(corpus.writer(root, split, first=len(finished[split]))) for split in SPLITS
        }
        for split, document in corpus.documents(root, scan, dict(done)):
            writers[split].add(document)
            done[split] += 1
            if done[split] in ends[split]:
                writers[split].end_shard()


if __name__ == "__main__":
    sys.exit(console())
