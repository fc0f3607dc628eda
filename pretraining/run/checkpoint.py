"""The canonical checkpoint: named logical tensors as boxes in safetensors files, and a manifest written last.

    checkpoints/step_00000200/rank_00000.safetensors   the boxes that rank 0 wrote
    checkpoints/step_00000200/manifest.json            every tensor's global shape and its boxes, the run's state

A folder without a manifest is not a checkpoint. A box that several ranks hold is written by one of them. Loading
reads the boxes that meet what the new layout needs, so that any layout loads what any other wrote.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pydantic

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import sync, write_atomically
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.texts import gather_texts
from pretraining.parallel.world import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

FORMAT = 1
T = TypeVar("T")


@dataclass
class _SavedBox:
    offset: list[int]
    size: list[int]
    file: str
    key: str
    crc32: int


@dataclass
class _SavedTensor:
    shape: list[int]
    boxes: list[_SavedBox]


@dataclass
class _Manifest:
    """The form of manifest.json; it is used as it was read."""

    format: int
    state: dict[str, Any]
    files: dict[str, int]  # bytes of each
    tensors: dict[str, _SavedTensor]


class NewerFormat(InputError):
    """A checkpoint of a later version of this code."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """What the trainer saved besides tensors."""
        return self.manifest["state"]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the manifest and checks that every file is there in its full size. Raises InputError."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint")
    if not path.is_file():
        raise InputError(f"{folder}: incomplete checkpoint: manifest.json is missing (interrupted while saving?)")
    manifest = _read_manifest(path)
    for name, size in manifest["files"].items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise InputError(
                f"{file}: {'missing' if found is None else f'{found} bytes'}, expected {size} bytes: "
                "the checkpoint is truncated"
            )
    return Checkpoint(folder, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormat(f"{path}: format {found} is newer than this version reads ({FORMAT})")
    try:
        pydantic.TypeAdapter(_Manifest).validate_python(manifest)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(f"{path}: not the manifest of a checkpoint ({where}: {fault['msg']})") from error
    return manifest


def checkpoint_folders(folder: Path) -> list[Path]:
    """Those below `folder` that are named as a checkpoint, whole or not, the oldest first."""
    return sorted(f for f in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", f.name))


def newest_checkpoint(folder: Path, before: Checkpoint | None = None) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`, of those older than `before`; says which newer ones it skips and
    why. None where none is whole. Raises NewerFormat: older ones would lose what a later version trained."""
    for candidate in reversed(checkpoint_folders(folder)):
        if before is not None and candidate.name >= before.folder.name:
            continue
        try:
            return open_checkpoint(candidate)
        except NewerFormat:
            raise
        except InputError as error:
            print(f"skipped {candidate.name}: {error}", file=sys.stderr)
    return None


class Saver:
    """Saves in the background: training waits for the copy of the tensors only.

    A save that fails is reported and does not end the run: the checkpoint before it stays the newest.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.thread: threading.Thread | None = None
        self.succeeded = True

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
        self.succeeded = False  # also where an exception ends this thread
        self.succeeded = _save(share, state, folder, self.world)
        if self.succeeded and self.world.is_main:
            try:
                afterwards()
            except OSError as error:
                print(f"warning: after {folder.name} was saved: {error}", file=sys.stderr)


def _save(share: list[Entry], state: dict[str, Any], folder: Path, world: World) -> bool:
    """Every rank writes its share of the boxes, then rank 0 the manifest -> whether it succeeded. A job that is killed
    in between leaves a folder without a manifest; a save that fails leaves no folder."""
    main = world.is_main
    made = _agree(world, folder, lambda: _new_folder(folder) if main else None)
    written = made and _agree(world, folder, lambda: _write_share(share, folder, f"rank_{world.rank:05d}"))
    whole = written and _agree(world, folder, lambda: _write_manifest(folder, written, state) if main else None)
    if not whole and main:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(whole)


def _agree(world: World, folder: Path, work: Callable[[], Any]) -> list[Any] | None:
    """-> what `work` returned on every rank; None where it failed on some, with the reasons printed. All is caught,
    since the other ranks wait to hear of it; errors other than I/O are printed with a traceback."""
    from safetensors import SafetensorError

    try:
        outcome = {"value": work()}
    except Exception as error:  # not re-raised here: the other ranks would wait in the collective below
        if not isinstance(error, OSError | SafetensorError):
            traceback.print_exc()
        outcome = {"error": f"rank {world.rank}: {error}"}
    outcomes = _gather(outcome, world, world.mesh.save_group)
    errors = [o["error"] for o in outcomes if "error" in o]
    if errors and world.is_main:
        print(f"warning: {folder.name} could not be saved: {'; '.join(errors)}", file=sys.stderr)
    return None if errors else [o["value"] for o in outcomes]


def _new_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def check_fits(checkpoint: Checkpoint, tensors: list[tuple[Fragment, Tensor]]) -> None:
    """Raises InputError where the checkpoint lacks one of the tensors, or has it in another shape."""
    faults = [_mismatch(checkpoint.manifest["tensors"], fragment) for fragment, _ in tensors]
    if any(faults):
        raise InputError(f"{checkpoint.folder} does not fit: " + "; ".join(f for f in faults if f))


def load_tensors(checkpoint: Checkpoint, tensors: list[tuple[Fragment, Tensor]]) -> None:
    """Overwrites `tensors` in place. Raises InputError for tensors that do not fit and for files that are damaged."""
    import torch

    check_fits(checkpoint, tensors)
    saved, reader = checkpoint.manifest["tensors"], _BoxReader(checkpoint.folder)
    with torch.no_grad():
        for fragment, tensor in tensors:
            flat = tensor.view(-1)
            for box, begin in fragment.boxes():
                target = flat[begin : begin + box.numel].view(box.size)
                _fill(target, box, saved[fragment.name]["boxes"], reader)


def prune_checkpoints(folder: Path, keep_last: int, keep_every: int) -> None:
    """Removes whole checkpoints but the newest `keep_last` and those of every `keep_every`-th step (0: none)."""
    whole = [f for f in checkpoint_folders(folder) if (f / "manifest.json").exists()]
    for old in whole[:-keep_last]:
        step = int(old.name.removeprefix("step_"))
        if not keep_every or step % keep_every:
            (old / "manifest.json").unlink()  # from here on it is no checkpoint, whatever interrupts us
            shutil.rmtree(old)


def set_aside_newer(folder: Path, step: int | None) -> None:
    """Renames checkpoints beyond `step` (None: all), which are not ancestors of the resumed run."""
    for newer in checkpoint_folders(folder):
        if step is None or int(newer.name.removeprefix("step_")) > step:
            aside = newer.with_name(f"abandoned_{newer.name}")
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


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
            {"offset": list(box.offset), "size": list(box.size), "file": file, "key": key, "crc32": _crc32(values)}
        )
    return {"files": {file: (folder / file).stat().st_size}, "tensors": tensors}


def _write_manifest(folder: Path, gathered: list[dict[str, Any]], state: dict[str, Any]) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, "state": state, "files": {}, "tensors": {}}
    for entries in gathered:
        manifest["files"].update(entries["files"])
        for name, entry in entries["tensors"].items():
            merged = manifest["tensors"].setdefault(name, {"shape": entry["shape"], "boxes": []})
            merged["boxes"] += entry["boxes"]
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))


def _gather(value: T, world: World, group: ProcessGroup | None) -> list[T]:
    """Everyone's value, on every rank: plain JSON, since nothing that a peer sends may be executed. Tuples come as
    lists."""
    if group is None:
        return [value]
    return [json.loads(text) for text in gather_texts(json.dumps(value), group) if text is not None]


def _mismatch(saved: dict[str, Any], fragment: Fragment) -> str | None:
    if fragment.name not in saved:
        return f"it has no tensor {fragment.name}"
    if saved[fragment.name]["shape"] != list(fragment.shape):
        return f"{fragment.name} is {saved[fragment.name]['shape']}, the model's is {list(fragment.shape)}"
    return None


def _fill(target: Tensor, box: Box, saved: list[dict[str, Any]], reader: _BoxReader) -> None:
    covered = 0
    for entry in saved:
        held = Box(tuple(entry["offset"]), tuple(entry["size"]))
        common = box.intersect(held)
        if common is not None:
            target[common.slices_of(box)] = reader.read(entry)[common.slices_of(held)]
            covered += common.numel
    if covered != box.numel:
        raise InputError(f"{reader.folder}: the saved boxes cover {covered} of {box.numel} elements of a tensor")


class _BoxReader:
    """Reads boxes, checks their checksum, and keeps the last one: neighboring fragments often share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.last: tuple[str, str] | None = None
        self.tensor: Tensor

    def read(self, entry: dict[str, Any]) -> Tensor:
        from safetensors import SafetensorError, safe_open

        place = (entry["file"], entry["key"])
        if place != self.last:
            try:
                if entry["file"] not in self.files:
                    self.files[entry["file"]] = safe_open(str(self.folder / entry["file"]), framework="pt")
                self.tensor, self.last = self.files[entry["file"]].get_tensor(entry["key"]), place
            except SafetensorError as error:
                raise InputError(f"{self.folder / entry['file']} is damaged: {error}") from error
            if _crc32(self.tensor) != entry["crc32"]:
                raise InputError(f"{self.folder / entry['file']}: {entry['key']} is damaged (checksum differs)")
        return self.tensor


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(dtype=_bytes_type()).numpy().data)


def _bytes_type() -> torch.dtype:
    import torch

    return torch.uint8
