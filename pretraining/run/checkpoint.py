"""Saving a checkpoint, whose form is in checkpoint_format: each rank writes its share of the boxes and the part of the
manifest that lists them, then rank 0 the manifest.

Nothing that a rank does grows with the number of ranks: who writes what follows from the fragments themselves, and what
rank 0 has to know of the others is merged two by two on its way.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic

from data_pipeline.common.files import sync, write_atomically
from pretraining.parallel.copies import dealt
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.texts import broadcast_text, merge_texts
from pretraining.parallel.world import World
from pretraining.run.checkpoint_format import FORMAT, MANIFEST, Manifest, problem_of
from pretraining.run.checkpoint_pieces import Pieces, joined
from pretraining.run.checkpoint_reader import crc32

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]


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
        share = [
            Held(fragment, tensor.detach().reshape(-1).to("cpu", copy=True))
            for fragment, tensor in dealt(tensors, self.world.mesh)
        ]
        self.thread = threading.Thread(target=self._run, args=(share, state, folder, afterwards))
        self.thread.start()

    def wait(self) -> bool:
        """Until the last save has ended -> whether it succeeded, the same on all ranks."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        return self.succeeded

    def _run(self, share: list[Held], state: dict[str, Any], folder: Path, afterwards: Callable[[], None]) -> None:
        self.succeeded, self.reason = False, "another rank was lost"  # also where an exception ends this thread
        self.reason = _save(share, state, folder, self.world)
        self.succeeded = not self.reason
        if self.succeeded and self.world.is_main:
            try:
                afterwards()
            except OSError as error:
                print(f"warning: after {folder.name} was saved: {error}", file=sys.stderr)


def _save(share: list[Held], state: dict[str, Any], folder: Path, world: World) -> str:
    """Every rank writes its share of the boxes, then rank 0 the manifest -> why it failed, "" where it did not. A job
    that is killed in between leaves a folder without a manifest; a save that fails leaves no folder."""
    name = f"rank_{world.rank:05d}"
    failure = _from_main(world, lambda: _failure(_outcome(world, lambda: _new_folder(folder))))
    if not failure:
        outcome = _merged(_outcome(world, lambda: _write_share(share, folder, name)), world)
        failure = _from_main(world, lambda: _complete(outcome, folder, state, world))
    if failure and world.is_main:
        print(f"warning: {folder.name} could not be saved: {failure}", file=sys.stderr)
        if not folder.parent.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    return failure


def _outcome(world: World, work: Callable[[], Json | None]) -> Json:
    """-> {"value": what `work` returned}, or {"error"}. All is caught, since the other ranks wait to hear of it; errors
    other than I/O are printed with a traceback."""
    from safetensors import SafetensorError

    try:
        return {"value": work()}
    except Exception as error:  # not re-raised here: the other ranks would wait in the collective that follows
        if not isinstance(error, OSError | SafetensorError):
            traceback.print_exc()
        return {"error": f"rank {world.rank}: {error}"}


def _failure(outcome: Json) -> str:
    return outcome.get("error", "")


def _from_main(world: World, work: Callable[[], str]) -> str:
    """What `work` returned on rank 0, which alone does it, on every rank."""
    text = work() if world.is_main else None
    group = world.mesh.save_group
    return broadcast_text(text, group) if group is not None else text or ""


def _merged(outcome: Json, world: World) -> Json:
    """On rank 0 the outcome of all ranks, elsewhere any."""
    group = world.mesh.save_group
    if group is None:
        return outcome
    # plain JSON, since nothing that a peer sends may be executed
    merge = partial(_merge_texts, world)
    return json.loads(merge_texts(json.dumps(outcome), merge, group, world.mesh.along_data()) or "{}")


def _merge_texts(world: World, first: str, second: str) -> str:
    def merge() -> Json:
        one, other = json.loads(first), json.loads(second)
        if errors := [outcome["error"] for outcome in (one, other) if "error" in outcome]:
            return {"error": "; ".join(errors)}
        return {"value": merged(one["value"], other["value"])}

    outcome = _outcome(world, merge)
    return json.dumps(outcome.get("value", outcome))


def _complete(outcome: Json, folder: Path, state: dict[str, Any], world: World) -> str:
    if "error" not in outcome:
        outcome = _outcome(world, lambda: _write_manifest(folder, outcome["value"], state))
    return _failure(outcome)


def _new_folder(folder: Path) -> None:
    if folder.parent.is_symlink():
        raise OSError(f"{folder.parent} is a link: checkpoints are written into run_dir itself")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


class Held(NamedTuple):
    """What this rank writes, and a copy of its values on the host, flat."""

    fragment: Fragment
    values: Tensor


def _write_share(share: list[Held], folder: Path, name: str) -> Json:
    """-> what the manifest is to say of it: {"files", "parts", "tensors"}, as in checkpoint_format. Empties `share`."""
    from safetensors.torch import save_file

    if not share:
        return {"files": {}, "parts": [], "tensors": {}}
    file, fragments, values = f"{name}.safetensors", [held.fragment for held in share], _by_key(share)
    save_file(values, folder / file)
    (folder / file).chmod(folder.stat().st_mode & 0o666)  # safetensors writes for the owner alone
    sync(folder / file)
    listed: Json = {}
    tensors: Json = {}
    for fragment in fragments:
        boxes = [
            {
                "offset": list(box.offset),
                "size": list(box.size),
                "file": file,
                "key": _key(fragment, box),
                "crc32": crc32(values[_key(fragment, box)]),
            }
            for box, _ in fragment.boxes()
        ]
        entry = tensors.setdefault(fragment.name, {"shape": list(fragment.shape), "boxes": [], "pieces": []})
        if fragment.is_box:  # there are few, however many ranks there are
            entry["boxes"] += boxes
        else:
            entry["pieces"].append(asdict(Pieces.of(fragment)))
            listed.setdefault(fragment.name, []).extend(boxes)
    parts = [_write_part(folder / f"{name}.json", listed)] if listed else []
    return {"files": {file: (folder / file).stat().st_size}, "parts": parts, "tensors": tensors}


def _key(fragment: Fragment, box: Box) -> str:
    return f"{fragment.name}@{','.join(map(str, box.offset))}"


def _by_key(share: list[Held]) -> dict[str, Tensor]:
    """Every box of the share, each with memory of its own, as safetensors wants it."""
    found = {}
    while share:  # what was cut into boxes is freed: else all would lie in memory twice
        fragment, flat = share.pop()
        parts = list(fragment.boxes())
        for box, begin in parts:
            values = flat[begin : begin + box.numel].view(box.size)
            found[_key(fragment, box)] = values if len(parts) == 1 else values.clone()
    return found


def _write_part(path: Path, listed: Json) -> Json:
    data = json.dumps({"tensors": listed}, separators=(",", ":")).encode()
    write_atomically(path, data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def merged(one: Json, other: Json) -> Json:
    """What the manifest is to say of two groups of ranks, of which the first one's come first. Raises ValueError where
    they do not have the same tensors."""
    parts, tensors = len(one["parts"]), one["tensors"]
    for name, entry in other["tensors"].items():
        known = tensors.setdefault(name, {"shape": entry["shape"], "boxes": [], "pieces": []})
        if known["shape"] != entry["shape"]:
            raise ValueError(f"{name} is {known['shape']} on one rank and {entry['shape']} on another")
        known["boxes"] += entry["boxes"]
        known["pieces"] = joined(known["pieces"], entry["pieces"], parts)
    return {"files": one["files"] | other["files"], "parts": one["parts"] + other["parts"], "tensors": tensors}


def _write_manifest(folder: Path, gathered: Json, state: dict[str, Any]) -> None:
    """Raises ValueError where what the ranks wrote is not each tensor once: better now than when it is needed."""
    manifest = {"format": FORMAT, "state": state, **gathered}
    if problem := problem_of(pydantic.TypeAdapter(Manifest).validate_python(manifest), complete=True):
        raise ValueError(f"what the ranks have is no checkpoint: {problem}")
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
