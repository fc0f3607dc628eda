"""What can be known of a job before it waits in a queue: whether it would start, save and go on. No GPU is needed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import check_files, load_manifest
from pretraining.build import Data, read_data, read_start
from pretraining.cluster.estimates import Shapes, StepTime, Unknown, save_seconds, saved_bytes, step_time
from pretraining.cluster.finding import Finding, found_by
from pretraining.cluster.plan import Plan
from pretraining.config import identity
from pretraining.run.checkpoint_format import Checkpoint, checkpoint_folders
from pretraining.run.ownership import live_owner
from pretraining.run.run_dir import Identity, check_run_dir, find_checkpoint, is_done
from pretraining.run.weights_and_biases import check_wandb

LONGEST_HEADER = 1 << 28  # bytes of the index of a safetensors file


def preflight(plan: Plan, problems: Sequence[str]) -> list[Finding]:
    """problems: those of the configuration; where there are some, the rest is looked at as far as it does not depend
    on them."""
    found = [Finding("configuration", "problem", text) for text in problems]
    found = found or [Finding("configuration", "ok", f"{len(plan.overrides)} overrides"), _batches(plan)]
    if problems:
        return [*found, found_by("data", lambda: _shards(plan)), found_by("run folder", lambda: _place(plan))]
    try:
        text, data = _shards(plan), read_data(plan.run)
    except InputError as error:
        return [*found, Finding("data", "problem", str(error)), found_by("run folder", lambda: _place(plan))]
    return [*found, Finding("data", "ok", text), *_run_findings(plan, data)]


def _batches(plan: Plan) -> Finding:
    train, cluster = plan.run.train, plan.cluster
    data_ranks = plan.run.engine.data_parallel(cluster.ranks)
    rounds = train.global_batch_size // (data_ranks * train.micro_batch_size)
    text = (
        f"{cluster.nodes} x {cluster.tasks} ranks; a global batch of {train.global_batch_size} is {data_ranks} "
        f"data-parallel ranks x {rounds} micro-batches of {train.micro_batch_size}"
    )
    parts = plan.run.engine.tensor_parallel
    if cluster.tasks % parts and cluster.nodes > 1:
        text += f"; groups of engine.tensor_parallel={parts} reach over nodes of {cluster.tasks} ranks, which is slow"
        return Finding("batches", "warning", text)
    return Finding("batches", "ok", text)


def _shards(plan: Plan) -> str:
    """Raises InputError where a shard is missing, or has another size than the manifest says."""
    if plan.run.data.problems():
        raise InputError("; ".join(plan.run.data.problems()))
    manifests = [load_manifest(folder) for folder in plan.run.data.folders.values()]
    for manifest in manifests:
        check_files(manifest)
    shards = [shard for manifest in manifests for shard in manifest.shards]
    return f"{len(shards)} shards, {_bytes(sum(shard.bytes for shard in shards))}, all there in their size"


def _place(plan: Plan, run: Identity | None = None) -> Finding | str:
    """Where the run's folder is, or will be made. run: None where it is not known."""
    folder = _existing(plan.run_dir)
    odd = next((text for text in ("'", "\\", "${", "\n") if text in str(plan.run_dir)), None)
    if odd is not None:
        raise InputError(f"run_dir={plan.run_dir} holds {odd!r}, which the job's script does not take")
    try:  # mode bits would not tell of a read-only mount
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"run_dir={plan.run_dir}: {folder} cannot be written to: {error.strerror or error}") from error
    if run is not None and folder == plan.run_dir:
        check_run_dir(plan.run, run)
    owner = live_owner(plan.run_dir) if folder == plan.run_dir else None
    if owner is not None:
        return Finding("run folder", "warning", f"{plan.run_dir}: a job on {owner.host} is training there")
    if run is not None and is_done(plan.run):
        return Finding("run folder", "warning", f"{plan.run_dir}: the run is done, a job would end at once")
    return f"{plan.run_dir}{'' if folder == plan.run_dir else ', to be made'}"


def _run_findings(plan: Plan, data: Data) -> list[Finding]:
    """What follows from the data: identity, checkpoint, disk, times."""
    run = identity(plan.run, data.prepared.bound)
    found = [found_by("run folder", lambda: _place(plan, run)), found_by("tracking", lambda: _tracking(plan))]
    try:
        checkpoint = find_checkpoint(plan.run, run)
        read_start(plan.run, data, checkpoint)
        text = _readable(checkpoint) if checkpoint is not None else f"none yet: {_beginning(plan)}"
    except InputError as error:
        return [*found, Finding("checkpoint", "problem", str(error))]
    shapes = Shapes(plan, data.prepared.vocabulary, data.objective)
    try:
        size = saved_bytes(checkpoint.manifest) if checkpoint is not None else shapes.checkpoint_bytes()
        step = step_time(plan, data.prepared.bound, shapes)
        save = save_seconds(plan, size)
    except InputError as error:  # train.freeze, cluster.measured
        return [*found, Finding("checkpoint", "ok", text), Finding("size and speed", "problem", str(error))]
    done = 0 if checkpoint is None else checkpoint.state["step"]
    rest = [_disk(plan, size), _first_checkpoint(plan, done, step), _lead(plan, step, save)]
    return [*found, Finding("checkpoint", "ok", text), *rest]


def _beginning(plan: Plan) -> str:
    start = plan.run.model.init_from
    return "training starts at step 0" + ("" if start is None else f", from {start}, which fits")


def _tracking(plan: Plan) -> str:
    check_wandb(plan.run.tracking, plan.run_dir)
    return "nothing that W&B would refuse"


def _readable(checkpoint: Checkpoint) -> str:
    """Opens each file and compares its index with the manifest and its parts; tensors are not read. Raises
    InputError."""
    wanted: dict[str, set[str]] = {name: set() for name in checkpoint.manifest["files"]}
    listed = [{name: tensor["boxes"] for name, tensor in checkpoint.tensors.items() if tensor["boxes"]}]
    for part in range(len(checkpoint.manifest.get("parts", []))):
        listed.append(checkpoint.boxes_in(part))
        for name, boxes in listed[-1].items():
            checkpoint.require_boxes(name, part, boxes)
    for box in (box for tensors in listed for boxes in tensors.values() for box in boxes):
        wanted[box["file"]].add(box["key"])
    for name, keys in wanted.items():
        missing = keys - _keys_of(checkpoint.folder / name)
        if missing:
            raise InputError(f"{checkpoint.folder / name}: {sorted(missing)[0]} is missing: the file is damaged")
    return f"{checkpoint.folder.name}, {_bytes(saved_bytes(checkpoint.manifest))}, fits any layout"


def _keys_of(path: Path) -> set[str]:
    """The names in a safetensors file, by its index: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER:
                raise ValueError("its index is too long")
            return set(json.loads(file.read(length)))
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _disk(plan: Plan, size: int) -> Finding:
    """size: of a checkpoint."""
    train = plan.run.train
    kept = train.keep_last + 1
    if train.keep_every and train.checkpoint_every:
        kept += train.steps // train.keep_every
    here = sum(_size_of(folder) for folder in checkpoint_folders(plan.run_dir / "checkpoints"))
    needed = max(0, kept * size - here)
    try:
        free = shutil.disk_usage(_existing(plan.run_dir)).free
    except OSError as error:  # what is wrong with the folder is told by _place
        return Finding("disk", "not checked", f"{plan.run_dir}: {error.strerror or error}")
    members = max(1, len(plan.sweep))
    copies = f"{members} x {kept}" if members > 1 else f"{kept}"
    needed *= members
    text = f"{copies} checkpoints of {_bytes(size)} need {_bytes(needed)} more, {_bytes(free)} are free (quotas aside)"
    return Finding("disk", "ok" if needed <= free else "problem", text)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _first_checkpoint(plan: Plan, done: int, step: StepTime | Unknown) -> Finding:
    """done: steps that the run has."""
    check, train, limit = "first checkpoint", plan.run.train, plan.cluster.limit_seconds
    if isinstance(step, Unknown):
        return Finding(check, "not checked", f"how long a step takes is unknown: {step.reason}")
    every = train.checkpoint_every or train.steps
    steps = min(every - done % every, max(0, train.steps - done))
    seconds = steps * step.seconds
    text = f"{steps} steps of {step.seconds:.3g} s, {_time(seconds)}, of a time limit of {_time(limit)} ({step.source})"
    if seconds <= limit - plan.cluster.lead_seconds:
        return Finding(check, "ok", text)
    text += ": a node that fails before then loses all of it; choose a smaller train.checkpoint_every"
    return Finding(check, "problem" if step.measured else "warning", text)


def _lead(plan: Plan, step: StepTime | Unknown, save: tuple[float, str] | Unknown) -> Finding:
    check, lead = "lead time", plan.cluster.lead_seconds
    unknown = [
        f"{what} is unknown: {u.reason}" for what, u in (("a step", step), ("a save", save)) if isinstance(u, Unknown)
    ]
    known = (0.0 if isinstance(step, Unknown) else step.slow_seconds) + (0.0 if isinstance(save, Unknown) else save[0])
    if known > lead:
        guessed = isinstance(step, StepTime) and not step.measured
        text = f"a step and a save take {_time(known)}, cluster.lead_seconds={lead} is less"
        return Finding(check, "warning" if guessed else "problem", text)
    if isinstance(step, Unknown) or isinstance(save, Unknown):
        return Finding(check, "not checked", f"{lead} s; {'; '.join(unknown)}")
    return Finding(
        check, "ok", f"{lead} s, for a step of {step.slow_seconds:.3g} s and a save of {save[0]:.3g} s, {save[1]}"
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02} h" if hours else f"{minutes} min"
