"""The form of a checkpoint: named logical tensors as boxes in safetensors files, and a manifest written last.

    checkpoints/step_00000200/rank_00000.safetensors   the boxes that rank 0 wrote
    checkpoints/step_00000200/manifest.json            every tensor's global shape and its boxes, the run's state

A folder without a manifest is not a checkpoint. Nothing that a manifest says is believed: files are plain ones that lie
in the folder, boxes lie within their tensors and do not overlap.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json
from pretraining.parallel.fragments import Box, Fragment

FORMAT = 1
MANIFEST = "manifest.json"
MOST_SIDE_BY_SIDE = 256  # boxes of a tensor that share a row
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
_Count = Annotated[int, pydantic.Field(strict=True, ge=0, lt=1 << 60)]


@dataclass
class SavedBox:
    offset: list[_Count]
    size: list[_Count]
    file: str
    key: str
    crc32: _Count


@dataclass
class SavedTensor:
    shape: list[_Count]
    boxes: list[SavedBox]


@dataclass
class Manifest:
    """manifest.json; it is used as it was read."""

    format: _Count
    state: dict[str, Any]
    files: dict[str, _Count]  # bytes of each
    tensors: dict[str, SavedTensor]


@dataclass
class TrainerState:
    """The form of a manifest's state, which Trainer.save says besides the tensors; what has a default is not in
    checkpoints of earlier versions."""

    step: _Count
    tokens: _Count
    evaluated_step: Annotated[int, pydantic.Field(strict=True, ge=-1, lt=1 << 60)]
    position: dict[str, Any]
    identity: dict[str, Any]
    course: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, _Count] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    training_seconds: Annotated[float, pydantic.Field(strict=True, ge=0.0, allow_inf_nan=False)] = 0.0


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
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint")
    if not os.path.lexists(path):
        raise InputError(f"{folder}: incomplete checkpoint: manifest.json is missing (interrupted while saving?)")
    require_plain_file(path)
    manifest = _read_manifest(path)
    for name, size in manifest["files"].items():
        found = _size_within(folder, name)
        if found != size:
            raise InputError(
                f"{folder / name}: {'missing' if found is None else f'{found} bytes'}, expected {size} bytes: "
                "the checkpoint is truncated"
            )
    return Checkpoint(folder, manifest)


def require_plain_file(path: Path) -> None:
    """Raises InputError for a link, a folder, a pipe: what was written here is none of these."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise InputError(f"{path} is not a plain file: a checkpoint holds no links, folders or pipes")


def _size_within(folder: Path, name: str) -> int | None:
    """In bytes; None where there is no such file. Raises InputError for a name that leads out of the folder."""
    if not _FILE_NAME.fullmatch(name):
        raise InputError(f"{folder / MANIFEST}: {name[:200]!r} is not the name of a file of a checkpoint")
    path = folder / name
    if not os.path.lexists(path):
        return None
    require_plain_file(path)
    return path.stat().st_size


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    found = manifest.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormat(f"{path}: format {found} is newer than this version reads ({FORMAT})")
    try:
        form = pydantic.TypeAdapter(Manifest).validate_python(manifest)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(f"{path}: not the manifest of a checkpoint ({where}: {fault['msg']})") from error
    for name, tensor in form.tensors.items():
        if problem := _problem_of(tensor, form.files):
            raise InputError(f"{path}: {name}: {problem}")
    return manifest


def _problem_of(tensor: SavedTensor, files: dict[str, int]) -> str | None:
    """Why the boxes can't be those of the tensor. Together they must hold each of its elements once."""
    whole = Fragment.whole("", tuple(tensor.shape)).box
    boxes = [Box(tuple(saved.offset), tuple(saved.size)) for saved in tensor.boxes]
    for saved, box in zip(tensor.boxes, boxes, strict=True):
        if saved.file not in files:
            return f"a box lies in {saved.file[:200]!r}, which is none of the checkpoint's files"
        if not len(box.offset) == len(box.size) == len(whole.size):
            return f"a box of {len(box.size)} dimensions in a tensor of {len(whole.size)}"
        if box.numel and box.intersect(whole) != box:
            return f"the box of size {list(box.size)} at {list(box.offset)} leaves the shape {tensor.shape}"
    held = sum(box.numel for box in boxes)
    if held > whole.numel or _overlap(boxes):  # in this order: the first bounds the work of the second
        return f"its boxes overlap: they hold {held} elements of {whole.numel}"
    return None


def _overlap(boxes: list[Box]) -> bool:
    """Whether two of them share an element, or more lie side by side than any layout makes.

    Sorted by where they begin along the first dimension, as saved ones are ranges of rows, a box is compared with the
    few that begin before it ends."""
    if boxes and not boxes[0].size:
        return len(boxes) > 1
    ordered = sorted((box for box in boxes if box.numel), key=lambda box: box.offset[0])
    open_boxes: list[Box] = []
    for box in ordered:
        open_boxes = [other for other in open_boxes if other.offset[0] + other.size[0] > box.offset[0]]
        if any(box.intersect(other) is not None for other in open_boxes) or len(open_boxes) > MOST_SIDE_BY_SIDE:
            return True
        open_boxes.append(box)
    return False


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def step_of_folder(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def named_as_checkpoints(folder: Path) -> list[Path]:
    """What has the name of a checkpoint below `folder`, links and files too, the oldest first."""
    return sorted((f for f in folder.glob("step_*") if re.fullmatch(r"step_\d{8,15}", f.name)), key=step_of_folder)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Those below `folder` that are named as a checkpoint, whole or not, the oldest first; links are none."""
    return [found for found in named_as_checkpoints(folder) if found.is_dir() and not found.is_symlink()]


def newest_checkpoint(folder: Path, before: Checkpoint | None = None) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`, of those older than `before`; says which newer ones it skips and
    why. None where none is whole. Raises NewerFormat: older ones would lose what a later version trained."""
    for candidate in reversed(checkpoint_folders(folder)):
        if before is not None and step_of_folder(candidate) >= step_of_folder(before.folder):
            continue
        try:
            return open_checkpoint(candidate)
        except NewerFormat:
            raise
        except InputError as error:
            print(f"skipped {candidate.name}: {error}", file=sys.stderr)
    return None
