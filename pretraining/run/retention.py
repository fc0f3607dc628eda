"""Which checkpoints of a run are kept, and which are set aside. Only folders of the run itself are ever removed: of
links nothing, and nothing through one."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from pretraining.run.checkpoint_format import MANIFEST, checkpoint_folders, named_as_checkpoints, step_of_folder


def prune_checkpoints(folder: Path, keep_last: int, keep_every: int) -> None:
    """Removes whole checkpoints but the newest `keep_last` and those of every `keep_every`-th step (0: none)."""
    if folder.is_symlink():
        return
    whole = [f for f in checkpoint_folders(folder) if (f / MANIFEST).exists()]
    for old in whole[:-keep_last]:
        step = step_of_folder(old)
        if not keep_every or step % keep_every:
            (old / MANIFEST).unlink()  # from here on it is no checkpoint, whatever interrupts us
            shutil.rmtree(old)


def make_room(folder: Path, keep_last: int, keep_every: int) -> None:
    """For one checkpoint more, after a save that failed: keep_last=N must not need room for N + 1. The newest one
    stays whatever keep_last is, and so keep_last=1 needs room for two."""
    prune_checkpoints(folder, max(1, keep_last - 1), keep_every)


def set_aside_newer(folder: Path, step: int | None) -> None:
    """Renames checkpoints beyond `step` (None: all), which are not ancestors of the resumed run, to names that are
    free: what was set aside before stays. Links and files of such names, too: they would be in the way of a save."""
    if folder.is_symlink():
        return
    for newer in named_as_checkpoints(folder):
        if step is None or step_of_folder(newer) > step:
            newer.rename(_free_name(newer.with_name(f"abandoned_{newer.name}")))


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not os.path.lexists(name))
