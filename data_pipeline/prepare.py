"""`pretrain-data`: raw files -> tokenizer or classes, shards and manifest."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.command import run_command, stdout_fault
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, InputError
from data_pipeline.common.files import is_local, join, remove_temporaries
from data_pipeline.common.supervise import supervised
from data_pipeline.prepare_config import PrepareConfig
from data_pipeline.sources.registry import build_corpus

if TYPE_CHECKING:
    from data_pipeline.shards.continuation import Scan
    from data_pipeline.shards.manifest import Shard
    from data_pipeline.shards.record import Record
    from data_pipeline.sources.corpus import Corpus, Vocabulary

_MUCH = 1e9  # bytes, a second or two
_ABOUT = """pretrain-data: turns raw text into a tokenizer, shards and a manifest; images into shards and a manifest.
pretrain-data verify: compares prepared data with the checksums from when they were written.
pretrain-data similar: a table of similar words for prepared data, for objective.replacement=similar.

Example:
  pretrain-data corpus.inputs=[books,'notes/*.md'] output=data/books tokenizer.vocab_size=8192
  pretrain-data corpus=images corpus.inputs=[photos] output=data/photos
  pretrain-data verify output=data/books
"""


def console() -> int:
    """The console script; -> exit code."""
    return supervised(main, "the same command continues")


def main() -> int:
    """-> exit code. `pretrain-data verify` and `pretrain-data similar` are commands of their own."""
    if sys.argv[1:2] == ["verify"]:
        from data_pipeline import verify

        del sys.argv[1]
        return verify.main()
    if sys.argv[1:2] == ["similar"]:
        from data_pipeline import similar

        del sys.argv[1]
        return similar.main()
    return run_command(_command, _ABOUT, "prepare", PrepareConfig)


def prepare(config: PrepareConfig) -> None:
    """Writes `config.output`, or continues what was started there. An InputError leaves what was there as it was."""
    if not is_local(config.output):
        raise InputError(f"output={config.output}: only a local folder can be written; copy it to its URL afterwards")
    write_dataset(build_corpus(config), config)


def write_dataset(corpus: Corpus[Any], config: PrepareConfig) -> None:
    """Two passes over the files of any corpus: the first decides the split, the second writes the shards. Those that
    were written before are kept where they are still what they were then."""
    from data_pipeline.shards import continuation
    from data_pipeline.shards.manifest import SPLITS, Manifest, Split, save_manifest
    from data_pipeline.shards.record import end_record, load_record

    started, root = time.monotonic(), str(Path(config.output))
    before = continuation.load_continuation(root)
    if before is not None:
        continuation.check_settings(root, before, corpus.settings)
    unchanged = before is not None and before.listing == corpus.listing
    record = load_record(root)
    whole = _whole_shards(root, record, config.num_workers)
    if unchanged and record.finished and whole == record.shards:
        print(f"{root} is already complete")
        return
    scan = before.scan if before is not None and unchanged and not corpus.needs_scan(root) else corpus.scan()
    if before is not None:
        continuation.check_corpus(root, before, scan)
    with continuation.locked(root):
        vocabulary = corpus.vocabulary(root)
        _check_tokenizer(root, record, vocabulary)
        # Only now: a vocabulary that is refused must not leave a plan.json that binds the next try to its settings.
        continuation.Continuation(corpus.settings, corpus.listing, scan).save(root)
        vocabulary.save(root)
        _write_shards(corpus, root, scan, config.min_shards, whole, vocabulary)
        written = load_record(root).shards
        manifest = Manifest(
            root,
            corpus.kind,
            vocabulary.tokenizer_info,
            config.seed,
            config.valid_fraction,
            {split: Split.of(written[split]) for split in SPLITS},
            vocabulary.classes,
        )
        save_manifest(manifest)
        end_record(root)
    print(f"{corpus.summary(manifest, scan)}, {time.monotonic() - started:.1f} s; written to {root}")


def _command(overrides: list[str]) -> int:
    config = compose_config("prepare", overrides, PrepareConfig)
    try:
        prepare(config)
        return EXIT_DONE
    except BrokenProcessPool:
        print("a worker process was killed (out of memory?); the same command continues", file=sys.stderr)
    except OSError as error:  # a corpus reports its own as InputError: this one is of the output
        if stdout_fault(error) is not None:  # or of what is printed
            raise
        raise InputError(f"output={config.output}: {error.strerror or error} {error.filename or ''}") from error
    return EXIT_REQUEUE


def _whole_shards(root: str, record: Record, num_workers: int) -> Mapping[str, Sequence[Shard]]:
    """The shards that stay as they are. Says what is wrong with others."""
    from data_pipeline.shards.manifest import first_of
    from data_pipeline.shards.record import damage

    size = sum(shard.bytes for shard in record.all_shards)
    if size > _MUCH:
        print(f"comparing {size / 1e9:.1f} GB of shards with the checksums from when they were written", flush=True)
    damaged = damage(root, record.all_shards, num_workers)
    if damaged:
        print(f"{first_of(list(damaged.values()))}\nthese shards are written again, with those that follow them")
    return record.up_to_the_first(damaged)


def _check_tokenizer(root: str, record: Record, vocabulary: Vocabulary) -> None:
    made = vocabulary.tokenizer_info
    if record.tokenizer is not None and (made is None or made.fingerprint != record.tokenizer):
        raise InputError(
            f"{join(root, 'tokenizer')} is not the tokenizer that the shards in {root} were written with; nothing was "
            "written. Put the right one back, or remove that folder"
        )


def _write_shards(
    corpus: Corpus[Any],
    root: str,
    scan: Scan,
    min_shards: int,
    whole: Mapping[str, Sequence[Shard]],
    vocabulary: Vocabulary,
) -> None:
    """The second pass: every document but those in whole shards."""
    from data_pipeline.shards.manifest import SPLITS
    from data_pipeline.shards.record import begin_record

    done = {split: sum(shard.documents for shard in whole[split]) for split in SPLITS}
    if any(done.values()):
        print(f"continuing after {done['train']} training and {done['valid']} validation documents")
    for folder in (root, *(join(root, split) for split in SPLITS)):
        remove_temporaries(folder)
    info = vocabulary.tokenizer_info
    begin_record(root, whole, info.fingerprint if info else None)
    documents = {"train": scan.documents - scan.valid_documents, "valid": scan.valid_documents}
    ends = {split: {documents[split] * i // min_shards for i in range(1, min_shards)} for split in SPLITS}
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(corpus.writer(root, split, first=len(whole[split]))) for split in SPLITS}
        for split, document in corpus.documents(root, scan, dict(done)):
            writers[split].add(document)
            done[split] += 1
            if done[split] in ends[split]:
                writers[split].end_shard()


if __name__ == "__main__":
    sys.exit(console())
