"""Saving a checkpoint, whose form is in checkpoint_format: each rank writes its share of the boxes, then rank 0 the
manifest."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from data_pipeline.common.files import sync, write_atomically
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.texts import gather_texts
from pretraining.parallel.world import World
from pretraining.run.checkpoint_format import FORMAT, MANIFEST
from pretraining.run.checkpoint_reader import crc32

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Saver:
    """Saves in the background: training waits for the copy of the tensors only.

    A save that fails is reported and does not end the run: the checkpoint before it stays the newest. reason: why the
    last one failed, on rank 0.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.thread: threading.Thread | None = None
        self.succeeded, self.reason = True, ""

    @property
    def is_running(self) -> bool:
        """Whether this rank is still writing."""
        return self.thread is not None and self.thread.is_alive()

    def save(
        self,
        tensors: list[tuple[Fragment, Tensor]],
        state: dict[str, Any],
        folder: Path,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write `folder`; rank 0 calls `afterwards` once it is whole."""
        self.wait()
        share = _share(tensors, self.world)
        self.thread = threading.Thread(target=self._run, args=(share, state, folder, afterwards))
        self.thread.start()

    def wait(self) -> bool:
        """Until the last save has ended -> whether it succeeded, the same on all ranks."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        return self.succeeded

    def _run(self, share: list[Entry], state: dict[str, Any], folder: Path, afterwards: Callable[[], None]) -> None:
        self.succeeded, self.reason = False, "another rank was lost"  # also where an exception ends this thread
        self.reason = _save(share, state, folder, self.world)
        self.succeeded = not self.reason
        if self.succeeded and self.world.is_main:
            try:
                afterwards()
            except OSError as error:
                print(f"warning: after {folder.name} was saved: {error}", file=sys.stderr)


def _save(share: list[Entry], state: dict[str, Any], folder: Path, world: World) -> str:
    """Every rank writes its share of the boxes, then rank 0 the manifest -> why it failed, "" where it did not. A job
    that is killed in between leaves a folder without a manifest; a save that fails leaves no folder."""
    main = world.is_main
    try:
        _agree(world, lambda: _new_folder(folder) if main else None)
        written = _agree(world, lambda: _write_share(share, folder, f"rank_{world.rank:05d}"))
        _agree(world, lambda: _write_manifest(folder, written, state) if main else None)
    except _SaveFailed as failure:
        if main:
            print(f"warning: {folder.name} could not be saved: {failure}", file=sys.stderr)
            if not folder.parent.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
        return str(failure)
    return ""


class _SaveFailed(Exception):
    """Some rank could not do its part; all ranks raise it."""


def _agree(world: World, work: Callable[[], Any]) -> list[Any]:
    """-> what `work` returned on every rank. Raises _SaveFailed, on all, where it failed on some. All is caught, since
    the other ranks wait to hear of it; errors other than I/O are printed with a traceback."""
    from safetensors import SafetensorError

    try:
        outcome = {"value": work()}
    except Exception as error:  # not re-raised here: the other ranks would wait in the collective below
        if not isinstance(error, OSError | SafetensorError):
            traceback.print_exc()
        outcome = {"error": f"rank {world.rank}: {error}"}
    outcomes = _gather(outcome, world, world.mesh.save_group)
    if errors := [o["error"] for o in outcomes if "error" in o]:
        raise _SaveFailed("; ".join(errors))
    return [o["value"] for o in outcomes]


def _new_folder(folder: Path) -> None:
    if folder.parent.is_symlink():
        raise OSError(f"{folder.parent} is a link: checkpoints are written into run_dir itself")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


class Entry(NamedTuple):
    """A box that this rank writes, and a copy of its values on the host."""

    key: str
    fragment: Fragment
    box: Box
    values: Tensor


def _share(tensors: list[tuple[Fragment, Tensor]], world: World) -> list[Entry]:
    """The boxes that this rank writes: of those that several ranks hold, each falls to the rank with the least."""
    mine = [
        (f"{fragment.name}@{','.join(map(str, box.offset))}", fragment, box, tensor.view(-1)[begin:][: box.numel])
        for fragment, tensor in tensors
        for box, begin in fragment.boxes()
    ]
    holders: dict[str, list[int]] = {}
    sizes = {}
    for rank, keys in enumerate(_gather([(key, box.numel) for key, _, box, _ in mine], world, world.mesh.host_group)):
        for key, size in keys:
            holders.setdefault(key, []).append(rank)
            sizes[key] = size
    load = [0] * world.size
    writers = {}
    for key, ranks in holders.items():
        writers[key] = min(ranks, key=lambda r: load[r])
        load[writers[key]] += sizes[key]
    return [
        Entry(key, fragment, box, flat.detach().reshape(box.size).to("cpu", copy=True))
        for key, fragment, box, flat in mine
        if writers[key] == world.rank
    ]


def _write_share(share: list[Entry], folder: Path, name: str) -> dict[str, Any]:
    """-> {"files": {name: bytes}, "tensors": {name: {"shape", "boxes"}}}."""
    from safetensors.torch import save_file

    if not share:
        return {"files": {}, "tensors": {}}
    file = f"{name}.safetensors"
    save_file({entry.key: entry.values for entry in share}, folder / file)
    (folder / file).chmod(folder.stat().st_mode & 0o666)  # safetensors writes for the owner alone
    sync(folder / file)
    tensors: dict[str, Any] = {}
    for key, fragment, box, values in share:
        described = tensors.setdefault(fragment.name, {"shape": list(fragment.shape), "boxes": []})
        described["boxes"].append(
            {"offset": list(box.offset), "size": list(box.size), "file": file, "key": key, "crc32": crc32(values)}
        )
    return {"files": {file: (folder / file).stat().st_size}, "tensors": tensors}


def _write_manifest(folder: Path, gathered: list[dict[str, Any]], state: dict[str, Any]) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, "state": state, "files": {}, "tensors": {}}
    for entries in gathered:
        manifest["files"].update(entries["files"])
        for name, entry in entries["tensors"].items():
            merged = manifest["tensors"].setdefault(name, {"shape": entry["shape"], "boxes": []})
            merged["boxes"] += entry["boxes"]
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))


def _gather(value: T, world: World, group: ProcessGroup | None) -> list[T]:
    """Everyone's value, on every rank: plain JSON, since nothing that a peer sends may be executed. Tuples come as
    lists."""
    if group is None:
        return [value]
    return [json.loads(text) for text in gather_texts(json.dumps(value), group) if text is not None]
