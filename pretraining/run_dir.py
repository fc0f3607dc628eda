"""A run's folder: what it holds, whether it may be continued, and how it ended."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.config import InputError, to_dict
from pretraining.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from pretraining.config import RunConfig, identity


def default_run_dir(config: RunConfig) -> str:
    """A new folder's name; rank 0's counts."""
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.model.name}-{config.objective.name}"


def find_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The checkpoint to start from, as train.resume says. Raises InputError."""
    if config.train.resume not in ("auto", "never"):
        return open_checkpoint(Path(config.train.resume))
    if config.run_dir is None:
        return None
    folder = Path(config.run_dir)
    if config.train.resume == "never":
        if (folder / "metrics.jsonl").exists():
            raise InputError(f"run_dir={folder} already holds a run, which train.resume=never would overwrite: "
                             "choose another run_dir, or train.resume=auto")
        return None
    return newest_checkpoint(folder / "checkpoints")


def check_identity(config: RunConfig, data_fingerprint: str) -> None:
    """Refuses to continue a run whose model, objective, optimizer, seed, batch or data differ."""
    if config.run_dir is None or not (Path(config.run_dir) / "config.yaml").exists():
        return
    from omegaconf import OmegaConf

    folder = Path(config.run_dir)
    before = identity(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))  # type: ignore[arg-type]
    now = json.loads(json.dumps(identity(config)))
    changed = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in sorted(before.keys() | now.keys())
               if before.get(key) != now.get(key)]
    if not changed and read_json(folder / "run.json").get("data_fingerprint") != data_fingerprint:
        changed = [f"data.path={config.data.path} was prepared anew: its content differs"]
    if changed:
        raise InputError(f"run_dir={folder} holds another run; choose another run_dir. Different are: "
                         + "; ".join(changed))


def write_config(config: RunConfig, run_dir: Path, data_fingerprint: str) -> None:
    """config.yaml and run.json; an earlier, different config.yaml is kept as config.1.yaml, config.2.yaml, ..."""
    from omegaconf import OmegaConf

    run_dir.mkdir(parents=True, exist_ok=True)
    path, text = run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    if path.exists() and path.read_text() != text:
        _warn_of_schedule(OmegaConf.to_container(OmegaConf.load(path)), config)
        number = next(n for n in range(1, 10**6) if not (run_dir / f"config.{n}.yaml").exists())
        os.replace(path, run_dir / f"config.{number}.yaml")
    write_text(path, text)
    values = read_json(run_dir / "run.json")
    write_text(run_dir / "run.json", json.dumps({**values, "data_fingerprint": data_fingerprint}))


def read_run_config(run_dir: Path) -> RunConfig:
    """run_dir/config.yaml as the RunConfig that it was. Raises InputError."""
    import pydantic
    from omegaconf import OmegaConf

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{path} is missing: {run_dir} is not a folder that pretrain wrote")
    values = OmegaConf.to_container(OmegaConf.load(path))
    try:
        return pydantic.TypeAdapter(RunConfig).validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        raise InputError(f"{path} is not a run's config of this version: {error}") from error


def load_plain_model(config: RunConfig, outputs: int, checkpoint: Checkpoint) -> Any:
    """The model on one process, with the checkpoint's weights; outputs: its vocabulary or number of classes."""
    from pretraining.checkpoint import load_tensors
    from pretraining.optim.shards import Fragment
    from pretraining.parallel.layers import PlainLayers

    model = config.model.build(outputs, PlainLayers())
    load_tensors(checkpoint, [(Fragment.whole(f"weights.{name}", tuple(p.shape)), p.data)
                              for name, p in model.named_parameters()])
    return model


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def write_text(path: Path, text: str) -> None:
    """Under a temporary name first: nobody ever reads half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _warn_of_schedule(before: Any, config: RunConfig) -> None:
    old, new = before["train"]["steps"], config.train.steps
    if old != new:
        print(f"warning: train.steps was {old}, is {new}: the learning-rate schedule is recomputed for {new} steps")
