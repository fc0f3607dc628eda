"""`pretrain-data verify output=DIR`: whether prepared data are still what they were when they were written."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import PathText, Positive, configclass

if TYPE_CHECKING:
    from data_pipeline.shards.manifest import Manifest

_ABOUT = """pretrain-data verify: compares prepared data with the checksums from when they were written.

Example:
  pretrain-data verify output=data/books
"""


@configclass
class VerifyConfig:
    """Compare prepared data with the checksums from when they were written.

    output: the folder that pretrain-data wrote, or its URL.
    num_workers: how many shards are read at a time.
    """

    output: PathText
    num_workers: Positive = 2


def main() -> int:
    """-> exit code."""
    return run_command(_command, _ABOUT, "verify", VerifyConfig)


def verify(root: str, num_workers: int) -> str:
    """Reads every byte -> what was checked, for a person. Raises InputError that names each damaged file."""
    from data_pipeline.common.progress import counted
    from data_pipeline.shards.manifest import load_manifest

    started = time.monotonic()
    manifest = load_manifest(root)
    problems = [*_tokenizer_problems(manifest), *_shard_problems(manifest, num_workers), *_unlisted(manifest)]
    if problems:
        listed = "\n".join(problems)
        raise InputError(
            f"{listed}\n{root}: {counted(len(problems), 'problem')} in {counted(len(manifest.shards), 'shard')}. The "
            "pretrain-data command that wrote the folder, given again, writes damaged shards again; or copy these "
            "files again from where they are whole"
        )
    size, seconds = sum(shard.bytes for shard in manifest.shards) / 1e6, time.monotonic() - started
    return f"{root}: {counted(len(manifest.shards), 'shard')}, {size:.1f} MB, as they were written ({seconds:.1f} s)"


def _command(overrides: list[str]) -> None:
    config = compose_config("verify", overrides, VerifyConfig)
    print(verify(config.output, config.num_workers))


def _tokenizer_problems(manifest: Manifest) -> list[str]:
    from data_pipeline.common.files import join
    from data_pipeline.tokenizers.tokenizer import Tokenizer

    if manifest.tokenizer is None:
        return []
    folder = join(manifest.root, "tokenizer")
    try:
        found = Tokenizer.load(folder)
    except InputError as error:
        return [str(error)]
    if found.fingerprint != manifest.tokenizer.fingerprint:
        return [f"{folder} is not the tokenizer that the shards were written with"]
    if ("" if found.similar is None else found.similar.sha256) != manifest.tokenizer.similar:
        return [f"{join(folder, 'similar.npz')} is not the one that the manifest describes"]
    return []


def _unlisted(manifest: Manifest) -> list[str]:
    """Training reads what the manifest lists; other programs read `train/*.tar`."""
    from data_pipeline.common.files import join, list_folder

    listed = {shard.name for shard in manifest.shards}
    found = [f"{split}/{name}" for split in manifest.splits for name in list_folder(join(manifest.root, split))]
    return [
        f"{join(manifest.root, name)} is not in the manifest"
        for name in found
        if name.endswith(".tar") and name not in listed
    ]


def _shard_problems(manifest: Manifest, num_workers: int) -> list[str]:
    numbers = [(split, number) for split, found in manifest.splits.items() for number in range(len(found.shards))]
    # Threads: reading, hashing and numpy let others run.
    with ThreadPoolExecutor(num_workers) as pool:
        return [problem for found in pool.map(lambda at: _problems_of(manifest, *at), numbers) for problem in found]


def _problems_of(manifest: Manifest, split: str, number: int) -> list[str]:
    from data_pipeline.shards.images import ImageReader
    from data_pipeline.shards.manifest import misfits
    from data_pipeline.shards.record import differences
    from data_pipeline.shards.text import TextReader

    shard = manifest.splits[split].shards[number]
    reader = (TextReader if manifest.tokenizer else ImageReader)(manifest, split)  # one a shard: it keeps each index
    try:
        reader.check_shard(number)
    except InputError as error:  # the sums of both files say more than that the first one cannot be understood
        return list(differences(manifest.root, shard)) or [str(error)]
    return list(misfits(manifest.root, shard))


if __name__ == "__main__":
    sys.exit(main())
