"""A run's folder: what it holds, whether it may be continued, and how it ended."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.compose import read_config
from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, InputError
from data_pipeline.common.fields import to_dict
from data_pipeline.common.files import exists, is_local, read_bytes, write_atomically
from data_pipeline.common.json_files import read_json_if_there, typed
from data_pipeline.common.yaml_files import read_yaml
from pretraining.config import RunConfig, course
from pretraining.models.vocabulary import Vocabulary
from pretraining.run.checkpoint_format import (
    MANIFEST,
    Checkpoint,
    TrainerState,
    checkpoint_folders,
    newest_checkpoint,
    open_checkpoint,
)
from pretraining.run.ownership import live_owner
from pretraining.run.terminal import warn
from pretraining.run.verdict import VERDICT, read_exit_code

if TYPE_CHECKING:
    from pretraining.models.heads import BringsHeads

RUNS = "runs"  # where runs go that are given no run_dir
Identity = dict[str, Any]  # see pretraining.config.identity


@dataclass
class Recorded:
    """What run.json holds, as far as it is read here. steps: in those of earlier versions, instead of `course`."""

    identity: Identity = field(default_factory=dict)
    course: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None


def new_run_dir(config: RunConfig) -> str:
    """The name that a run which is given none has if it begins now."""
    return f"{RUNS}/{datetime.now():%Y%m%d-%H%M%S}-{config.model.name}-{config.objective.name}"


def make_run_dir(config: RunConfig) -> str:
    """Makes a folder that no other job has, also of those that start in the same second -> its name."""
    name = new_run_dir(config)
    for number in itertools.count(2):
        try:
            Path(name).mkdir(parents=True)  # fails where it is there: whoever makes a folder owns it
            return name
        except FileExistsError:
            name = f"{name.removesuffix(f'.{number - 1}')}.{number}"
        except OSError as error:
            raise InputError(f"run_dir={name} cannot be made: {error}") from error
    raise AssertionError("some number is free")


def stopped_run_dir(config: RunConfig) -> str | None:
    """The folder of the newest run of this very config that was to be continued (exit code 75): where run_dir names
    none, the same command goes on there. None where there is none, or train.resume asks for another start."""
    if config.run_dir is not None or config.train.resume != "auto":
        return None
    wanted = _without_run_dir(_config_text(config))
    for folder in sorted(Path(RUNS).glob("*"), reverse=True):
        path = folder / "config.yaml"
        if not path.is_file() or read_exit_code(folder) != EXIT_REQUEUE or live_owner(folder) is not None:
            continue
        if _without_run_dir(read_bytes(path).decode(errors="replace")) == wanted:
            return str(folder)
    return None


def is_done(config: RunConfig) -> bool:
    """Whether run_dir holds a run of this very config that has ended well."""
    path = Path(config.run_dir or "") / "config.yaml"
    return read_exit_code(path.parent) == EXIT_DONE and _holds(path, _config_text(config))


def _without_run_dir(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("run_dir:"))


def _config_text(config: RunConfig) -> str:
    """config.yaml, as a run records it."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recorded_config(config)))


def find_checkpoint(config: RunConfig, run: Identity) -> Checkpoint | None:
    """The checkpoint to start from, as train.resume says. Raises InputError."""
    if config.train.resume not in ("auto", "never"):
        checkpoint: Checkpoint | None = _descendant(config) or _named(config.train.resume)
    elif config.run_dir is None:
        return None
    elif config.train.resume == "never":
        _require_no_run(Path(config.run_dir))
        return None
    else:
        checkpoint = newest_checkpoint(Path(config.run_dir) / "checkpoints")
        if checkpoint is None:
            _require_never_saved(Path(config.run_dir))
    if checkpoint is None:
        return None
    require_of_run(checkpoint, run)
    reached = checkpoint.state["step"]
    if reached > config.train.steps:
        raise InputError(
            f"train.steps={config.train.steps}: the run is at step {reached} already ({checkpoint.folder}); nothing "
            "was changed. Name more steps, or an earlier checkpoint by train.resume=PATH"
        )
    return checkpoint


def older_checkpoint(config: RunConfig, damaged: Checkpoint) -> Checkpoint | None:
    """What the run can go on from where `damaged` cannot be read; None where that is the one which train.resume
    names, or the last."""
    if config.train.resume == "auto":
        return newest_checkpoint(damaged.folder.parent, before=damaged)
    if damaged.folder.resolve() == Path(config.train.resume).resolve():
        return None
    older = _descendant(config, before=damaged)
    if older is not None:
        return older
    lies_there = damaged.folder.resolve().parents[1] == Path(config.train.resume).resolve()
    return _named(config.train.resume, before=damaged if lies_there else None)


def _named(resume: str, before: Checkpoint | None = None) -> Checkpoint:
    """The checkpoint at this path, or the newest whole one of the run there (of those older than `before`)."""
    path = Path(resume)
    if not path.is_dir():
        raise InputError(
            f"train.resume={resume}: no such checkpoint; it is auto, never, or the folder of a checkpoint or a run"
        )
    if not checkpoint_folders(path / "checkpoints"):
        return open_checkpoint(path)
    newest = newest_checkpoint(path / "checkpoints", before)
    if newest is None:
        raise InputError(f"train.resume={resume}: none of the run's checkpoints is whole")
    warn(f"train.resume={resume}: its newest checkpoint is taken, {newest.folder}")
    return newest


def _descendant(config: RunConfig, before: Checkpoint | None = None) -> Checkpoint | None:
    """The run's newest checkpoint (of those older than `before`) that it has reached since it started from
    train.resume=PATH. None where it never did, or has not got beyond: then PATH counts."""
    if config.run_dir is None:
        return None
    start = read_json_if_there(Path(config.run_dir) / "run.json").get("resumed")
    if start is None or not _is_named(start, Path(config.run_dir), Path(config.train.resume)):
        return None
    newest = newest_checkpoint(Path(config.run_dir) / "checkpoints", before)
    # those beyond were set aside when it started from PATH, so that what is newer comes from there
    return newest if newest is not None and newest.state.get("step", 0) > start["step"] else None


def _start_at(checkpoint: Checkpoint, run_dir: Path) -> dict[str, Any]:
    """What run.json says of the checkpoint that train.resume=PATH named: where it is, below run_dir if it is there, so
    that run_dir may be renamed; and a hash, by which it is known in another place."""
    path, home = checkpoint.folder.resolve(), run_dir.resolve()
    name = path.relative_to(home) if path.is_relative_to(home) else path
    return {"checkpoint": str(name), "step": checkpoint.state["step"], "manifest": _hash_of(path)}


def _is_named(start: dict[str, Any], run_dir: Path, named: Path) -> bool:
    """Whether `named` is the checkpoint of _start_at, or the run that has it: by whatever path it is reached, after it
    was pruned, and after its folder was renamed."""
    path = run_dir.resolve() / start["checkpoint"]  # an absolute one stays as it is
    if named.resolve() in (path, path.parents[1]):
        return True
    known = start.get("manifest")
    return known is not None and known in (_hash_of(named), _hash_of(named / "checkpoints" / path.name))


def _hash_of(checkpoint: Path) -> str | None:
    """Of the manifest, which has the checksums of all tensors; None where there is none."""
    try:
        return hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def require_of_run(checkpoint: Checkpoint, run: Identity) -> None:
    """Raises InputError where the run cannot go on from there."""
    typed(checkpoint.state, TrainerState, f"{checkpoint.folder}: the state in its manifest")
    _refuse_changes(f"{checkpoint.folder} belongs to another run", checkpoint.state["identity"], run)


def _require_no_run(folder: Path) -> None:
    if (folder / "metrics.jsonl").exists():
        raise InputError(
            f"run_dir={folder} already holds a run, which train.resume=never would overwrite: "
            "choose another run_dir, or train.resume=auto"
        )


def _require_never_saved(folder: Path) -> None:
    """A run may start over before its first complete checkpoint, never after it."""
    found = checkpoint_folders(folder / "checkpoints")
    code = read_json_if_there(folder / VERDICT).get("exit_code")
    if not found and (code == EXIT_DONE or "saved" in read_json_if_there(folder / "run.json")):
        raise InputError(
            f"{folder / 'checkpoints'} holds no checkpoint, though the run was saved: put back what was moved away, or "
            "choose another run_dir to start over"
        )
    ended_in_order = code in (EXIT_DONE, EXIT_REQUEUE)
    if found and (len(found) > 1 or ended_in_order or (found[0] / "manifest.json").exists()):
        raise InputError(
            f"{folder / 'checkpoints'}: none of the {len(found)} checkpoints is complete; "
            "choose another run_dir to start over"
        )


def check_run_dir(config: RunConfig, run: Identity) -> None:
    """Makes the folder, or the one that a new run's will be made in, and sees that it can be written to. Refuses to
    continue a run whose model, objective, optimizer, seed, batch or data differ."""
    folder = Path(config.run_dir or RUNS)
    key = f"run_dir={folder}" if config.run_dir else f"run_dir is not given, and {folder.absolute()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key} cannot be created: {error}") from error
    try:  # mode bits would not tell of a read-only mount
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{key} cannot be written to: {error.strerror or error}; choose another run_dir") from error
    if config.run_dir is None:
        return
    before = read_json_if_there(folder / "run.json").get("identity")
    if before is not None:
        typed({"identity": before}, Recorded, str(folder / "run.json"))
        _refuse_changes(f"run_dir={folder} holds another run; choose another run_dir", before, run)


def _refuse_changes(what: str, before: Identity, now: Identity) -> None:
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key != "data.content"
    ]
    if before.get("data.content") != now["data.content"]:
        changed.append(
            "data.sources have another tokenizer, or other classes"
            if now.get("data.name") == "mixture"
            else "data.path holds other data, or was prepared again: its content differs"
        )
    if changed:
        raise InputError(f"{what}. Differences: {'; '.join(changed)}")


def recorded_config(config: RunConfig) -> dict[str, Any]:
    """The config as a run records it: what it reads is named so that it is found from any folder."""
    values = to_dict(config)
    for group, key in (("data", "path"), ("model", "init_from")):
        if values[group][key] is not None:
            values[group][key] = _from_anywhere(values[group][key])
    sources = values["data"]["sources"]
    values["data"]["sources"] = {name: _from_anywhere(folder) for name, folder in sources.items()}
    return values


def _from_anywhere(path: str) -> str:
    return os.path.abspath(path) if is_local(path) else path


def write_config(config: RunConfig, run_dir: Path, run: Identity, start: Checkpoint | None = None) -> None:
    """config.yaml and run.json; an earlier, different config.yaml is kept as config.1.yaml, config.2.yaml, ...

    start: the checkpoint that the run goes on from.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path, text = run_dir / "config.yaml", _config_text(config)
    values = read_json_if_there(run_dir / "run.json")
    now = course(config)
    older = typed(values, Recorded, str(run_dir / "run.json"))
    before = {} if start is None else start.state.get("course") or older.course or _older_course(older)
    for change in _changes(before, now):
        warn(f"warning: {change}")
    if os.path.lexists(path) and not _holds(path, text):
        number = next(n for n in range(1, 10**6) if not (run_dir / f"config.{n}.yaml").exists())
        os.replace(path, run_dir / f"config.{number}.yaml")
    write_atomically(path, text)
    values |= {"identity": run, "course": now}
    named = Path(config.train.resume).resolve()
    if start is not None and named in (start.folder.resolve(), start.folder.resolve().parents[1]):
        values["resumed"] = _start_at(start, run_dir)
    write_atomically(run_dir / "run.json", json.dumps(values))


def _holds(path: Path, text: str) -> bool:
    """Whether it is a plain file with this text: a pipe at that name would never answer."""
    try:
        return read_bytes(path, links=False) == text.encode()
    except OSError:
        return False


def note_saved(run_dir: Path, step: int, seconds: float) -> None:
    """run.json knows that the run has had a checkpoint: should it find none later, they are lost. And how long the
    slowest save has taken: so much time a job needs before its limit."""
    values = read_json_if_there(run_dir / "run.json")
    slowest = values.get("save_seconds")
    if "saved" not in values or not isinstance(slowest, int | float) or seconds > slowest:
        values = {**values, "saved": values.get("saved", step), "save_seconds": round(seconds, 3)}
        write_atomically(run_dir / "run.json", json.dumps(values))


def read_run_config(run_dir: Path, modules: Sequence[str] = ()) -> RunConfig:
    """run_dir/config.yaml as the RunConfig that it was. Raises InputError.

    modules: those that the user names and that are imported already; a run that needs others is refused.
    """
    path = run_dir / "config.yaml"
    if not exists(path):
        raise InputError(f"{path} is missing: {run_dir} is not a folder that pretrain wrote")
    values = read_yaml(path)
    try:
        return read_config(values, RunConfig, modules)
    except InputError as error:
        raise InputError(f"{path} is not a config of this version: {error}") from error


def load_plain_model(config: RunConfig, vocabulary: Vocabulary, objective: BringsHeads, checkpoint: Checkpoint) -> Any:
    """The model on one process with its objective's heads and the checkpoint's weights."""
    from pretraining.models.heads import attach_heads
    from pretraining.models.registry import build_model
    from pretraining.parallel.fragments import Fragment
    from pretraining.parallel.layers import PlainLayers
    from pretraining.run.checkpoint_reader import load_tensors

    model = attach_heads(build_model(config.model, vocabulary, PlainLayers()), objective, PlainLayers())
    load_tensors(
        checkpoint,
        [(Fragment.whole(f"weights.{name}", tuple(p.shape)), p.data) for name, p in model.named_parameters()],
    )
    return model


def _older_course(older: Recorded) -> dict[str, Any]:
    """What run.json of an earlier version says of it."""
    return {} if older.steps is None else {"train.steps": older.steps}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What to report of a run that goes on; a key that `before` does not know is none."""
    found = [key for key in before if before[key] != now.get(key)]
    return [
        f"{key} was {before[key]!r}, {f'is {now[key]!r}' if key in now else 'does not exist now'}: "
        + ("the learning-rate schedule is recomputed" if key == "train.steps" else "from here on other numbers follow")
        for key in found
    ]
