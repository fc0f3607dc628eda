"""The form of a checkpoint: named logical tensors as boxes in safetensors files, and a manifest written last.

    checkpoints/step_00000200/rank_00000.safetensors   the boxes that rank 0 wrote
    checkpoints/step_00000200/rank_00000.json          a part of the manifest: rank 0's boxes of tensors that are cut
    checkpoints/step_00000200/manifest.json            every tensor's global shape, its boxes or the parts that list
                                                       them, the run's state

A folder without a manifest is not a checkpoint. Nothing that a manifest says is believed: files are plain ones that lie
in the folder, boxes lie within their tensors and do not overlap. Parts are read where they are needed; the manifest has
their checksums, and each must list the very boxes that follow from what the manifest says of it (checkpoint_pieces).

Format 1 has all boxes in the manifest and no parts.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pydantic

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import read_bytes
from data_pipeline.common.json_files import MAX_BYTES, parse_json, read_json
from pretraining.parallel.fragments import Box, Fragment
from pretraining.run.checkpoint_pieces import Count as _Count
from pretraining.run.checkpoint_pieces import Pieces, fault_of

FORMAT = 2
MANIFEST = "manifest.json"
MOST_SIDE_BY_SIDE = 256  # boxes of a tensor that share a row
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(safetensors|json)")


@dataclass
class SavedBox:
    offset: list[_Count]
    size: list[_Count]
    file: str
    key: str
    crc32: _Count


@dataclass
class SavedTensor:
    """boxes: of a tensor that is not cut, or that tensor parallelism alone cuts; pieces: of any other."""

    shape: list[_Count]
    boxes: list[SavedBox]
    pieces: list[Pieces] = field(default_factory=list)


@dataclass
class Manifest:
    """manifest.json; it is used as it was read."""

    format: _Count
    state: dict[str, Any]
    files: dict[str, _Count]  # bytes of each
    tensors: dict[str, SavedTensor]
    parts: list[SavedPart] = field(default_factory=list)


@dataclass
class SavedPart:
    """A file that lists boxes: by the name of the tensor, as Part says."""

    file: str
    bytes: Annotated[_Count, pydantic.Field(le=MAX_BYTES)]
    sha256: str


@dataclass
class Part:
    """rank_00000.json."""

    tensors: dict[str, list[SavedBox]]


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

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """By name: "shape" and, in the manifest itself, "boxes"."""
        return self.manifest["tensors"]

    @cached_property
    def pieces(self) -> dict[str, list[Pieces]]:
        """By name, of the tensors whose boxes stand in parts."""
        return {
            name: [Pieces(**pieces) for pieces in tensor["pieces"]]
            for name, tensor in self.tensors.items()
            if tensor.get("pieces")
        }

    def boxes_in(self, part: int) -> dict[str, list[dict[str, Any]]]:
        """By name, the boxes that a part lists. Reads it, and raises InputError where it is not what the manifest says
        of it; whether its boxes are the right ones is for require_boxes to say."""
        return _read_part(self.folder, self.manifest["parts"][part], self.manifest["files"])

    def require_boxes(self, name: str, part: int, boxes: list[dict[str, Any]]) -> None:
        """Raises InputError where these, which the part lists, are others than follow from the manifest: only of those
        it is known that they do not overlap."""
        due = [box for pieces in self.pieces[name] if part in pieces.parts for box in pieces.boxes(part)]
        listed = [Box(tuple(box["offset"]), tuple(box["size"])) for box in boxes]
        if sorted(listed) != sorted(due):
            file = self.folder / self.manifest["parts"][part]["file"]
            raise InputError(f"{file}: {name}: its boxes are not those that the manifest says it has")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the manifest and checks that every file is there in its full size. Raises InputError."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint")
    if not os.path.lexists(path):
        raise InputError(f"{folder}: incomplete checkpoint: manifest.json is missing (interrupted while saving?)")
    require_plain_file(path)
    manifest = _read_manifest(path)
    parts = {part["file"]: part["bytes"] for part in manifest.get("parts", [])}
    for name, size in (manifest["files"] | parts).items():
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
    if problem := problem_of(form):
        raise InputError(f"{path}: {problem}")
    return manifest


def problem_of(manifest: Manifest, complete: bool = False) -> str | None:
    """Why its boxes and pieces can't be those of its tensors. Together they must hold each element once, at most.
    complete: and at least."""
    for name, tensor in manifest.tensors.items():
        pieces = tensor.pieces
        problem = _problem_of(tensor, manifest.files) or fault_of(tensor.shape, pieces, len(manifest.parts))
        if problem is None and pieces and (tensor.boxes or _do_overlap(pieces, tensor.shape)):
            problem = "its pieces overlap"
        if problem is None and complete and (missing := _missing(tensor)):
            problem = f"{missing} of its elements are written by no rank"
        if problem is not None:
            return f"{name}: {problem}"
    return None


def _do_overlap(pieces: list[Pieces], shape: list[int]) -> bool:
    """Whether the boxes that they are cut from share an element; checkpoint_pieces has looked within each."""
    boxes = sorted({one.box for one in pieces})
    return sum(box.numel for box in boxes) > math.prod(shape) or _overlap(boxes)


def _missing(tensor: SavedTensor) -> int:
    held = sum(math.prod(box.size) for box in tensor.boxes) + sum(one.stop - one.start for one in tensor.pieces)
    return math.prod(tensor.shape) - held


def _read_part(folder: Path, part: dict[str, Any], files: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    path = folder / part["file"]
    try:
        require_plain_file(path)
        data = read_bytes(path, part["bytes"], links=False)
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise InputError(f"{path} is damaged (checksum differs)")
        values = parse_json(data)
        form = pydantic.TypeAdapter(Part).validate_python(values)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # pydantic's errors are such as well
        raise InputError(f"{path} is not a part of a manifest ({str(error)[:200]})") from error
    for name, boxes in form.tensors.items():
        if any(box.file not in files for box in boxes):
            raise InputError(f"{path}: {name}: a box lies in a file that is none of the checkpoint's")
    return values["tensors"]


def _problem_of(tensor: SavedTensor, files: dict[str, int]) -> str | None:
    """Why the boxes can't be those of the tensor."""
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
