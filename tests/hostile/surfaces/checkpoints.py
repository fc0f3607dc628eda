"""Checkpoints whose boxes, tensors and files are not what the manifest says, or lie elsewhere."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import HARMLESS, TRAIN, Case, Place, link, pipe, rewrite

NAME, PART = "weights.token_embedding.weight", "rank_00000.json"
Manifest = dict[str, Any]


def cases() -> Iterator[Case]:
    for name, change in _boxes().items():
        yield _case(name, lambda folder, change=change: rewrite(folder / "manifest.json", change))
    for name, change in _tensors().items():
        yield _case(name, lambda folder, change=change: _rewrite_tensors(folder, change))
    for name, lay in (_files() | _parts()).items():
        yield _case(name, lay)
    yield from _in_run_dir()


def _case(name: str, lay: Callable[[Path], object]) -> Case:
    def arrange(place: Place) -> list[str]:
        folder = place.copy("run") / "checkpoints" / "step_00000002"
        folder.rename(place.here / "step_00000002")
        lay(place.here / "step_00000002")
        return place.train(f"train.resume={place.here / 'step_00000002'}", f"run_dir={place.here / 'new'}")

    return Case("checkpoints", name, TRAIN, arrange, "step_00000002")


def _boxes() -> dict[str, Callable[[Manifest], None]]:
    def of_first_box(**changes: object) -> Callable[[Manifest], None]:
        return lambda m: m["tensors"][NAME]["boxes"][0].update(changes)

    def half_twice(manifest: Manifest) -> None:
        (box,) = manifest["tensors"][NAME]["boxes"]
        rows, columns = box["size"]
        manifest["tensors"][NAME]["boxes"] = [{**box, "size": [rows // 2, columns]}] * 2

    return {
        "half of a tensor twice": half_twice,
        "no box": lambda m: m["tensors"][NAME].update(boxes=[]),
        "a box too many": lambda m: m["tensors"][NAME]["boxes"].append(m["tensors"][NAME]["boxes"][0]),
        "a million boxes": lambda m: m["tensors"][NAME].update(boxes=m["tensors"][NAME]["boxes"] * 30_000),
        "a size beyond": of_first_box(size=[10**9, 10**9]),
        "a negative size": of_first_box(size=[-1, -1]),
        "a negative offset": of_first_box(offset=[-1, 0]),
        "an offset beyond": of_first_box(offset=[10**6, 0]),
        "other dimensions": of_first_box(size=[1]),
        "another key": of_first_box(key="weights.final_norm.weight@0"),
        "no such key": of_first_box(key="x"),
        "another checksum": of_first_box(crc32=1),
        "a file outside": of_first_box(file="../run/checkpoints/step_00000001/rank_00000.safetensors"),
        "an absolute file": of_first_box(file="/etc/passwd"),
        "a file with NUL": of_first_box(file="a\0b"),
        "a file with a long name": of_first_box(file="x" * 10_000),
        "a file that is a folder": of_first_box(file="."),
        "a file that is missing": of_first_box(file="rank_00009.safetensors"),
        "a file that is no weights": of_first_box(file="manifest.json"),
        "another shape": lambda m: m["tensors"][NAME].update(shape=[1, 1]),
        "a tensor less": lambda m: m["tensors"].pop(NAME),
        "a file less": lambda m: m.update(files={}),
        "another size of a file": lambda m: m["files"].update({"rank_00000.safetensors": 5}),
        "a step that never was": lambda m: m["state"].update(step=10**18),
        "a step below zero": lambda m: m["state"].update(step=-5),
        "no state": lambda m: m.pop("state"),
        "another format": lambda m: m.update(format=99),
        "another identity": lambda m: m["state"]["identity"].update({"train.seed": 77}),
    }


def _tensors() -> dict[str, Callable[[Any], Any]]:
    import torch

    return {
        "NaN": lambda t: torch.full_like(t, float("nan")),
        "infinity": lambda t: torch.full_like(t, float("inf")),
        "integers": lambda t: t.int(),
        "doubles": lambda t: t.double(),
        "halves": lambda t: t.half(),
        "one row": lambda t: t[:1].clone(),
        "transposed": lambda t: t.T.contiguous(),
        "flat": lambda t: t.reshape(-1),
        "empty": lambda t: t[:0].clone(),
    }


def _rewrite_tensors(folder: Path, change: Callable[[Any], Any]) -> None:
    """With the checksum and size that the manifest says."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "rank_00000.safetensors"
    tensors = load_file(file)
    (key,) = (k for k in tensors if k.split("@")[0] == NAME)
    tensors[key] = change(tensors[key])
    save_file(tensors, file)
    crc = zlib.crc32(tensors[key].reshape(-1).view(torch.uint8).numpy().data)

    def seal(manifest: Manifest) -> None:
        manifest["tensors"][NAME]["boxes"][0]["crc32"] = crc
        manifest["files"][file.name] = file.stat().st_size

    rewrite(folder / "manifest.json", seal)


def _files() -> dict[str, Callable[[Path], object]]:
    weights = "rank_00000.safetensors"

    def header(size: int, text: bytes = b"{}") -> Callable[[Path], object]:
        return lambda folder: (folder / weights).write_bytes(size.to_bytes(8, "little") + text)

    def swapped(folder: Path) -> None:
        """A pipe of the size that the manifest says: it has none."""
        pipe(folder / weights)
        rewrite(folder / "manifest.json", lambda m: m["files"].update({weights: 0}))

    return {
        "weights that are a pipe": swapped,
        "weights that are a device": lambda folder: link(folder / weights, "/dev/zero"),
        "weights that are cut": lambda folder: (folder / weights).write_bytes((folder / weights).read_bytes()[:-7]),
        "weights without a byte": lambda folder: (folder / weights).write_bytes(b""),
        "a header of 2^63 bytes": header(2**63),
        "a header of 100 MB": header(100_000_000),
        "a header of deep lists": header(50_000, b"[" * 50_000),
        "a pickle": lambda folder: (folder / weights).write_bytes(b"\x80\x04\x95cos\nsystem\n(S'touch outside/x'\ntR."),
        "no files": lambda folder: [f.unlink() for f in folder.iterdir()],
    }


def _parts() -> dict[str, Callable[[Path], object]]:
    """A manifest in parts, of one rank that holds a tensor as if it were cut."""

    def manifest(change: Callable[[Manifest], object]) -> Callable[[Path], object]:
        return lambda folder: (_cut(folder), rewrite(folder / "manifest.json", lambda m: change(m) and None))

    def piece(**changes: object) -> Callable[[Path], object]:
        return manifest(lambda m: m["tensors"][NAME]["pieces"][0].update(changes))

    def part(**changes: object) -> Callable[[Path], object]:
        return manifest(lambda m: m["parts"][0].update(changes))

    def content(text: bytes) -> Callable[[Path], object]:
        return lambda folder: _cut(folder, lambda _: text)

    def box(**changes: object) -> Callable[[Path], object]:
        return lambda folder: _cut(
            folder, lambda boxes: json.dumps({"tensors": {NAME: [{**boxes[0], **changes}]}}).encode()
        )

    return {
        "pieces of 10^18 ranks": piece(count=10**17, length=10),
        "a million pieces": manifest(lambda m: m["tensors"][NAME].update(pieces=m["tensors"][NAME]["pieces"] * 10**5)),
        "a piece of nothing": piece(length=0),
        "a piece beyond": piece(start=10**15),
        "a piece in no part": piece(part=7),
        "a piece and a box": manifest(lambda m: m["tensors"][NAME]["boxes"].append({})),
        "no parts": manifest(lambda m: m.pop("parts")),
        "a part outside": part(file="../run/config.json"),
        "a part that is the manifest": part(file="manifest.json"),
        "a part of 2^59 bytes": part(bytes=1 << 59),
        "another checksum of a part": part(sha256="0" * 64),
        "a part that is a pipe": lambda folder: (_cut(folder), pipe(folder / PART)),
        "a part that is a link": lambda folder: (_cut(folder), link(folder / PART, "/etc/passwd")),
        "a part that is missing": lambda folder: (_cut(folder), (folder / PART).unlink()),
        "a part of deep lists": content(b"[" * 50_000),
        "a part that is a pickle": content(b"\x80\x04\x95cos\nsystem\n(S'touch outside/x'\ntR."),
        "a part without the tensor": content(b'{"tensors": {}}'),
        "a part with another box": box(size=[1, 1]),
        "a part with a file outside": box(file="../run/checkpoints/step_00000001/rank_00000.safetensors"),
        "a part with another checksum of a box": box(crc32=1),
    }


def _cut(folder: Path, content: Callable[[list[Any]], bytes] | None = None) -> None:
    """content: of the part, given the tensor's boxes."""

    def move(manifest: Manifest) -> None:
        tensor = manifest["tensors"][NAME]
        boxes, size = tensor["boxes"], tensor["shape"]
        data = content(boxes) if content else json.dumps({"tensors": {NAME: boxes}}).encode()
        (folder / PART).write_bytes(data)
        sealed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["parts"] = [{"file": PART, **sealed}]
        piece = {"offset": [0, 0], "size": size, "start": 0, "length": size[0] * size[1], "part": 0, "count": 1}
        tensor.update(boxes=[], pieces=[piece])

    rewrite(folder / "manifest.json", move)


def _in_run_dir() -> Iterator[Case]:
    """Names in checkpoints/ that lead to a stranger's folder: what is there stays."""

    def pruned(place: Place) -> list[str]:
        link(place.copy("run") / "checkpoints" / "step_00000001", place.outside / "step_00000001")
        return place.train("train.checkpoint_every=1", "train.keep_last=1")

    def aside(place: Place) -> list[str]:
        run = place.copy("run")
        link(run / "checkpoints" / "abandoned_step_00000002", place.outside)
        return place.train(f"train.resume={run / 'checkpoints' / 'step_00000001'}")

    def aside_file(place: Place) -> list[str]:
        run = place.copy("run")
        (run / "checkpoints" / "abandoned_step_00000002").write_text("")
        return place.train(f"train.resume={run / 'checkpoints' / 'step_00000001'}")

    def next_is_a_link(place: Place) -> list[str]:
        link(place.copy("run") / "checkpoints" / "step_00000003", place.outside)
        return place.train()

    def next_is_a_file(place: Place) -> list[str]:
        (place.copy("run") / "checkpoints" / "step_00000003").write_text("")
        return place.train()

    for name, arrange in (
        ("an old checkpoint is a link", pruned),
        ("the set-aside one is a link", aside),
        ("the set-aside one is a file", aside_file),
        ("the next checkpoint is a link", next_is_a_link),
        ("the next checkpoint is a file", next_is_a_file),
    ):
        yield Case("checkpoints", name, TRAIN, arrange, "checkpoints", HARMLESS)
