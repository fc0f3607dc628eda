"""A run's folder: what it holds, whether it may be continued, and how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.compose import read_config
from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, InputError
from data_pipeline.common.fields import to_dict
from data_pipeline.common.files import write_atomically
from data_pipeline.common.json_files import read_json_if_there
from pretraining.config import RunConfig
from pretraining.run.checkpoint import Checkpoint, checkpoint_folders, newest_checkpoint, open_checkpoint

if TYPE_CHECKING:
    from pretraining.models.heads import BringsHeads

VERDICT = "verdict.json"
Identity = dict[str, Any]  # see pretraining.config.identity
STATE = {"step", "tokens", "evaluated_step", "position", "identity"}  # what Trainer.save adds to the tensors


def default_run_dir(config: RunConfig) -> str:
    """A new folder's name; rank 0's counts."""
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.model.name}-{config.objective.name}"


def named_run_dir(overrides: Sequence[str]) -> Path | None:
    """The run_dir that these overrides name, before anything is known to be right."""
    names = [o.removeprefix("run_dir=").strip("'\"") for o in overrides if o.startswith("run_dir=")]
    return Path(names[-1]) if names and names[-1] not in ("", "null") and "$" not in names[-1] else None


def find_checkpoint(config: RunConfig, run: Identity) -> Checkpoint | None:
    """The checkpoint to start from, as train.resume says. Raises InputError."""
    if config.train.resume not in ("auto", "never"):
        checkpoint: Checkpoint | None = open_checkpoint(Path(config.train.resume))
    elif config.run_dir is None:
        return None
    elif config.train.resume == "never":
        _require_no_run(Path(config.run_dir))
        return None
    else:
        checkpoint = newest_checkpoint(Path(config.run_dir) / "checkpoints")
        if checkpoint is None:
            _require_never_saved(Path(config.run_dir))
    if checkpoint is not None:
        require_of_run(checkpoint, run)
    return checkpoint


def require_of_run(checkpoint: Checkpoint, run: Identity) -> None:
    """Raises InputError where the run cannot go on from there."""
    missing = STATE - checkpoint.state.keys()
    if missing:
        raise InputError(f"{checkpoint.folder}: the state in its manifest lacks {', '.join(sorted(missing))}")
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
    ended_in_order = read_json_if_there(folder / VERDICT).get("exit_code") in (EXIT_DONE, EXIT_REQUEUE)
    if found and (len(found) > 1 or ended_in_order or (found[0] / "manifest.json").exists()):
        raise InputError(
            f"{folder / 'checkpoints'}: none of the {len(found)} checkpoints is complete; "
            "choose another run_dir to start over"
        )


def check_run_dir(config: RunConfig, run: Identity) -> None:
    """Makes the folder. Refuses to continue a run whose model, objective, optimizer, seed, batch or data differ."""
    if config.run_dir is None:
        return
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run_dir={folder} cannot be created: {error}") from error
    before = read_json_if_there(folder / "run.json").get("identity")
    if before is not None:
        _refuse_changes(f"run_dir={folder} holds another run; choose another run_dir", before, run)


def _refuse_changes(what: str, before: Identity, now: Identity) -> None:
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key != "data.content"
    ]
    if before["data.content"] != now["data.content"]:
        changed.append("data.path holds other data, or was prepared again: its content differs")
    if changed:
        raise InputError(f"{what}. Differences: {'; '.join(changed)}")


def write_config(config: RunConfig, run_dir: Path, run: Identity) -> None:
    """config.yaml and run.json; an earlier, different config.yaml is kept as config.1.yaml, config.2.yaml, ..."""
    from omegaconf import OmegaConf

    run_dir.mkdir(parents=True, exist_ok=True)
    path, text = run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    values = read_json_if_there(run_dir / "run.json")
    if path.exists() and path.read_bytes() != text.encode():
        _warn_of_schedule(values.get("steps"), config.train.steps)
        number = next(n for n in range(1, 10**6) if not (run_dir / f"config.{n}.yaml").exists())
        os.replace(path, run_dir / f"config.{number}.yaml")
    write_atomically(path, text)
    write_atomically(run_dir / "run.json", json.dumps({**values, "identity": run, "steps": config.train.steps}))


def read_run_config(run_dir: Path) -> RunConfig:
    """run_dir/config.yaml as the RunConfig that it was. Raises InputError."""
    import yaml
    from omegaconf import OmegaConf

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{path} is missing: {run_dir} is not a folder that pretrain wrote")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
        return read_config(values, RunConfig)
    except (InputError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not a config of this version: {error}") from error


def load_plain_model(config: RunConfig, outputs: int, objective: BringsHeads, checkpoint: Checkpoint) -> Any:
    """The model on one process with its objective's heads and the checkpoint's weights; outputs: the size of its
    vocabulary or number of classes."""
    from pretraining.models.heads import attach_heads
    from pretraining.models.registry import build_model
    from pretraining.parallel.fragments import Fragment
    from pretraining.parallel.layers import PlainLayers
    from pretraining.run.checkpoint import load_tensors

    model = attach_heads(build_model(config.model, outputs, PlainLayers()), objective, PlainLayers())
    load_tensors(
        checkpoint,
        [(Fragment.whole(f"weights.{name}", tuple(p.shape)), p.data) for name, p in model.named_parameters()],
    )
    return model


def _warn_of_schedule(before: int | None, steps: int) -> None:
    if before not in (None, steps):
        print(f"warning: train.steps was {before}, is {steps}: the learning-rate schedule is recomputed")
