"""Proof, before training, that every rank can write where the run is saved and that all see the same folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import sync
from pretraining.parallel.host import broadcast_text, run_on_all_ranks
from pretraining.parallel.world import World

SECONDS_TO_APPEAR = 30.0  # of a file that another node wrote: network file systems remember what was not there
PROOF_BYTES = 1 << 12  # a full disk may still make an empty file


def prove_shared(world: World, folder: Path) -> None:
    """Rank 0 makes `folder` where it is missing; each rank writes a file there and reads rank 0's. Raises InputError,
    on all ranks, where one of them cannot, or where `folder` is a link."""
    name = broadcast_text(world, f".proof_{secrets.token_hex(8)}")
    own = folder / f"{name}_{world.rank}"
    try:
        run_on_all_ranks(world, lambda: _make(folder) if world.is_main else None)
        run_on_all_ranks(world, lambda: _prove(world, own, folder / f"{name}_0"))
    finally:
        with contextlib.suppress(OSError):
            own.unlink()


def _make(folder: Path) -> None:
    if folder.is_symlink():
        raise InputError(
            f"{folder} is a link, and nothing is written through one: name the folder it stands for by run_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}") from error


def _prove(world: World, own: Path, first: Path) -> None:
    try:
        _write(own)
    except OSError as error:
        raise InputError(
            f"rank {world.rank} on {socket.gethostname()} cannot write into {own.parent}, where the run is saved: "
            f"{error.strerror or error}"
        ) from error
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not _appears(first):
        if time.monotonic() > deadline:
            raise InputError(
                f"rank {world.rank} on {socket.gethostname()} does not see what rank 0 wrote into {first.parent}: "
                "run_dir must lie on a file system that all nodes share"
            )
        time.sleep(0.1)


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        os.write(descriptor, bytes(PROOF_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync(path.parent)


def _appears(path: Path) -> bool:
    """Listing the folder makes a client of a network file system ask its server again."""
    return path.name in os.listdir(path.parent) and path.stat().st_size == PROOF_BYTES
