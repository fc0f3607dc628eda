"""Loading a checkpoint: reads the boxes that meet what the new layout needs, so that any layout loads what any other
wrote."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import InputError
from pretraining.parallel.fragments import Box, Fragment
from pretraining.run.checkpoint_format import Checkpoint, require_plain_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HERE = -1  # in place of a part's number: the manifest itself


class NotFinite(InputError):
    """Weights with which nothing can be trained or exported; train.load_not_finite=true loads them to be looked at."""


def check_fits(checkpoint: Checkpoint, tensors: list[tuple[Fragment, Tensor]]) -> None:
    """Raises InputError where the checkpoint lacks one of the tensors, or has it in another shape."""
    faults = [_mismatch(checkpoint.tensors, fragment) for fragment, _ in tensors]
    if any(faults):
        raise InputError(f"{checkpoint.folder} does not fit: " + "; ".join(f for f in faults if f))


def load_tensors(checkpoint: Checkpoint, tensors: list[tuple[Fragment, Tensor]]) -> None:
    """Overwrites `tensors` in place. Raises InputError for tensors that do not fit and for files that are damaged;
    NotFinite, once all are read, for values that are not finite."""
    import torch

    check_fits(checkpoint, tensors)
    wanted = [
        _Wanted(fragment.name, box, tensor.view(-1)[begin : begin + box.numel].view(box.size))
        for fragment, tensor in tensors
        for box, begin in fragment.boxes()
    ]
    with torch.no_grad():
        for part, targets in sorted(_by_part(checkpoint, wanted).items()):
            _fill_from(checkpoint, part, targets)
    for target in wanted:
        if target.covered != target.box.numel:
            raise InputError(
                f"{checkpoint.folder}: the saved boxes cover {target.covered} of {target.box.numel} elements of "
                f"{target.name}"
            )
    if broken := not_finite(tensors):
        raise NotFinite(f"{checkpoint.folder}: {broken[0]} holds values that are not finite: the run had diverged")


def parts_needed(checkpoint: Checkpoint, fragments: Iterable[Fragment]) -> list[int]:
    """The parts of the manifest that load_tensors reads for these."""
    return sorted(
        {
            part
            for fragment in fragments
            for box, _ in fragment.boxes()
            for pieces in checkpoint.pieces.get(fragment.name, ())
            for part in pieces.parts_of(box)
        }
    )


def not_finite(tensors: Iterable[tuple[Fragment, Tensor]]) -> list[str]:
    """The names of those that hold a NaN or an infinity; of the optimizer's averages infinities are none: a squared
    gradient may exceed fp32, and its weight then stands still. Reads each tensor once, and waits for the device."""
    import torch

    named = [(fragment.name, tensor) for fragment, tensor in tensors if tensor.numel()]
    if not named:
        return []
    largest = torch.stack(torch._foreach_norm([tensor for _, tensor in named], float("inf"))).tolist()
    return [
        name
        for (name, _), value in zip(named, largest, strict=True)
        if value != value or (value == float("inf") and not name.startswith("optimizer."))
    ]


def _mismatch(saved: dict[str, Any], fragment: Fragment) -> str | None:
    if fragment.name not in saved:
        return f"it has no tensor {fragment.name}"
    if saved[fragment.name]["shape"] != list(fragment.shape):
        return f"{fragment.name} is {saved[fragment.name]['shape']}, the model's is {list(fragment.shape)}"
    return None


@dataclass
class _Wanted:
    """A box of a tensor to be filled. covered: how many of its elements are; saved boxes of one tensor do not overlap
    (checkpoint_format), so that they may be counted."""

    name: str
    box: Box
    target: Tensor
    covered: int = 0

    def fill(self, saved: list[dict[str, Any]], reader: _BoxReader) -> None:
        for entry in saved:
            held = Box(tuple(entry["offset"]), tuple(entry["size"]))
            common = self.box.intersect(held)
            if common is not None:
                values = reader.read(entry, self.target.dtype)
                self.target[common.slices_of(self.box)] = values[common.slices_of(held)]
                self.covered += common.numel


def _by_part(checkpoint: Checkpoint, wanted: list[_Wanted]) -> dict[int, list[_Wanted]]:
    """Which parts of the manifest list boxes that meet them; HERE is the manifest itself."""
    found: dict[int, list[_Wanted]] = {}
    for target in wanted:
        for pieces in checkpoint.pieces.get(target.name, ()):
            for part in pieces.parts_of(target.box):
                found.setdefault(part, []).append(target)
        if checkpoint.tensors[target.name]["boxes"]:
            found.setdefault(HERE, []).append(target)
    return found


def _fill_from(checkpoint: Checkpoint, part: int, targets: list[_Wanted]) -> None:
    """One part at a time: all of them would not fit into memory where one process loads what many ranks wrote."""
    reader = _BoxReader(checkpoint)
    if part == HERE:
        for target in targets:
            target.fill(checkpoint.tensors[target.name]["boxes"], reader)
        return
    boxes = checkpoint.boxes_in(part)
    for name in {target.name for target in targets}:
        checkpoint.require_boxes(name, part, boxes.get(name, []))
    for target in targets:
        target.fill(boxes.get(target.name, []), reader)


class _BoxReader:
    """Reads boxes, checks their shape, type and checksum, and keeps the last one: neighboring fragments often share
    it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.folder
        self.files: dict[str, Any] = {}
        self.last: tuple[str, str] | None = None
        self.tensor: Tensor

    def read(self, entry: dict[str, Any], dtype: torch.dtype) -> Tensor:
        """entry: a box, which open_checkpoint has found to lie in one of the checkpoint's files."""
        place = (entry["file"], entry["key"])
        if place != self.last:
            self.tensor, self.last = self._tensor(*place), place
            if crc32(self.tensor) != entry["crc32"]:
                raise InputError(f"{self.folder / entry['file']}: {entry['key']} is damaged (checksum differs)")
        if list(self.tensor.shape) != entry["size"] or self.tensor.dtype != dtype:
            raise InputError(
                f"{self.folder / entry['file']}: {entry['key']} is {list(self.tensor.shape)} of {self.tensor.dtype}, "
                f"and should be {entry['size']} of {dtype}"
            )
        return self.tensor

    def _tensor(self, name: str, key: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        path = self.folder / name
        try:
            if name not in self.files:
                require_plain_file(path)
                self.files[name] = safe_open(str(path), framework="pt")
            tensor: Tensor = self.files[name].get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        return tensor


def crc32(tensor: Tensor) -> int:
    import torch

    return zlib.crc32(tensor.reshape(-1).view(dtype=torch.uint8).numpy().data)
