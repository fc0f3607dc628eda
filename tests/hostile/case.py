"""One hostile input: how it is laid out, which command meets it, and how that must end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 4  # other programs may want the processor
TRAIN, PREPARE = "pretraining.train", "data_pipeline.prepare"
EXPORT, SHOW = "pretraining.hub.export", "pretraining.commands.show"
REFUSED, HARMLESS = (2,), (0, 2)  # exit codes
TINY = (
    "model=gpt_debug",
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.max_seq_len=32",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler.warmup_steps=0",
    "tracking.wandb=disabled",
    "data.num_workers=0",
)
TINY_IMAGES = ("model=vit_debug", "objective=image_classification", *TINY[5:])


@dataclass(frozen=True)
class Place:
    """Where a case is laid out. here: its own folder. base: what `tests.hostile.base` made, never changed."""

    here: Path
    base: Path

    @property
    def outside(self) -> Path:
        """A stranger's folder: nothing in it may be written, deleted or renamed."""
        return self.here / "outside"

    def copy(self, name: str) -> Path:
        """Of base/name, to be changed."""
        target = self.here / name
        if not target.exists():
            shutil.copytree(self.base / name, target, symlinks=True)
        return target

    def train(self, *more: str, data: Path | None = None) -> list[str]:
        """The arguments that continue the run of base/run up to step 3, in `here`."""
        run = ("train.steps=3", f"data.path={data or self.base / 'data'}", f"run_dir={self.here / 'run'}")
        return [*TINY, *run, *more]

    def train_images(self, *more: str) -> list[str]:
        run = ("train.steps=1", f"data.path={self.here / 'images'}", f"run_dir={self.here / 'image_run'}")
        return [*TINY_IMAGES, *run, *more]

    def prepare(self, *more: str) -> list[str]:
        """The arguments that prepare here/in as text, with the tokenizer of base/data."""
        wanted = (f"corpus.inputs=[{self.here / 'in'}]", f"output={self.here / 'out'}")
        return [*wanted, f"tokenizer.path={self.base / 'data/tokenizer/tokenizer.model'}", "num_workers=0", *more]

    def prepare_images(self, *more: str) -> list[str]:
        wanted = ("corpus=images", f"corpus.inputs=[{self.here / 'in'}]", f"output={self.here / 'out'}")
        return [*wanted, "num_workers=0", *more]


@dataclass(frozen=True)
class Case:
    """arrange: lays out the files and gives the arguments. said: what the output must hold ({here} is replaced) where
    the command ends with 2. codes: the exit codes that are promised. seconds, megabytes: of processor time and of
    memory, at most, in a process that has torch imported already; PATIENCE times as long on the clock. real: by a
    fresh interpreter instead of a forked process."""

    surface: str
    name: str
    module: str
    arrange: Callable[[Place], list[str]]
    said: str = ""
    codes: tuple[int, ...] = REFUSED
    seconds: float = 30.0
    megabytes: int = 1000
    environment: Mapping[str, str] = field(default_factory=dict)
    real: bool = False


@dataclass(frozen=True)
class Result:
    """faults: what was not as promised."""

    case: Case
    code: int | None
    seconds: float
    megabytes: float
    faults: tuple[str, ...]
    output: str


def make_outside(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "victim").write_text("theirs")
    (folder / ".x.0123abcd.tmp").write_text("theirs")
    (folder / "step_00000001").mkdir()
    (folder / "step_00000001" / "manifest.json").write_text("{}")


def fingerprint(folder: Path) -> dict[str, str]:
    """Names, kinds and contents of all that lies in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else "other"
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """change: alters the parsed JSON, or returns another value."""
    values = read(path)
    changed = change(values)
    path.write_text(json.dumps(values if changed is None else changed))


def replace(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def link(path: Path, target: Path | str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
