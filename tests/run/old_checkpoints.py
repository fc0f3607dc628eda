"""The writer of checkpoints of format 1, as it was: every box of every rank in one manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pretraining.parallel.fragments import Fragment
from pretraining.run.checkpoint_format import open_checkpoint
from pretraining.run.checkpoint_reader import crc32

Json = dict[str, Any]


def write_format_1(folder: Path, ranks: list[list[tuple[Fragment, Tensor]]], state: Json) -> None:
    """ranks: what each of them writes."""
    folder.mkdir(parents=True)
    manifest: Json = {"format": 1, "state": state, "files": {}, "tensors": {}}
    for rank, share in enumerate(ranks):
        file, values = f"rank_{rank:05d}.safetensors", {}
        for fragment, tensor in share:
            entry = manifest["tensors"].setdefault(fragment.name, {"shape": list(fragment.shape), "boxes": []})
            for box, begin in fragment.boxes():
                key = f"{fragment.name}@{','.join(map(str, box.offset))}"
                values[key] = tensor.reshape(-1)[begin : begin + box.numel].reshape(box.size).clone()
                described = {"offset": list(box.offset), "size": list(box.size), "file": file, "key": key}
                entry["boxes"].append({**described, "crc32": crc32(values[key])})
        save_file(values, folder / file)
        manifest["files"][file] = (folder / file).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def as_format_1(folder: Path) -> None:
    """Rewrites the manifest of a checkpoint; its files of weights are those of format 1 already."""
    checkpoint = open_checkpoint(folder)
    manifest = {name: checkpoint.manifest[name] for name in ("state", "files", "tensors")}
    for number, part in enumerate(checkpoint.manifest["parts"]):
        for name, boxes in checkpoint.boxes_in(number).items():
            manifest["tensors"][name]["boxes"] += boxes
        (folder / part["file"]).unlink()
    for tensor in manifest["tensors"].values():
        del tensor["pieces"]
    (folder / "manifest.json").write_text(json.dumps({"format": 1, **manifest}, indent=1))
