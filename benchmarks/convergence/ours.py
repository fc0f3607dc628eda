"""This framework's side, by its commands alone, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.convergence.inputs import ROOT
from benchmarks.convergence.recipes import Recipe

UNCHANGED = 1e-30  # a learning rate at which one step leaves every fp32 weight as it was


def prepare(recipe: Recipe, inputs: Sequence[Path], output: Path) -> None:
    listed = ",".join(f"'{path}'" for path in inputs)
    _command("data_pipeline.prepare", *recipe.prepare, f"corpus.inputs=[{listed}]", f"output={output}")


def train(recipe: Recipe, data: Path, seed: int, folder: Path, optimizer: Sequence[str] = ()) -> None:
    """Trains in folder/run and exports the last checkpoint to folder/ours. optimizer: overrides of the optimizer and
    its schedule, in place of the recipe's."""
    run = folder / "run"
    _command("pretraining.train", *_run(recipe, data, seed, run), *(optimizer or _adamw(recipe)))
    _export(run, recipe.steps, folder / "ours")


def write_start(recipe: Recipe, data: Path, seed: int, folder: Path) -> None:
    """Exports the initial weights of that seed to folder/start."""
    run, still = folder / "start_run", replace(recipe, steps=1, warmup_steps=0, lr=UNCHANGED, final_lr=0.0)
    _command("pretraining.train", *_run(still, data, seed, run), *_adamw(still))
    _export(run, 1, folder / "start")


def _run(recipe: Recipe, data: Path, seed: int, run: Path) -> list[str]:
    return [
        *recipe.train,
        f"data.path={data}",
        f"run_dir={run}",
        f"train.seed={seed}",
        f"train.steps={recipe.steps}",
        f"train.global_batch_size={recipe.batch}",
        f"train.micro_batch_size={recipe.batch}",
        f"train.grad_clip={recipe.grad_clip}",
        f"scheduler.warmup_steps={recipe.warmup_steps}",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "train.log_every=100",
        "tracking.wandb=disabled",
        "data.num_workers=0",
    ]


def _adamw(recipe: Recipe) -> list[str]:
    return [
        "optimizer=adamw",
        f"optimizer.lr={recipe.lr}",
        f"optimizer.betas=[{recipe.betas[0]},{recipe.betas[1]}]",
        f"optimizer.weight_decay={recipe.weight_decay}",
        f"optimizer.eps={recipe.eps}",
        "scheduler=warmup_cosine",
        f"scheduler.min_ratio={recipe.final_lr / recipe.lr}",
    ]


def _export(run: Path, step: int, output: Path) -> None:
    _command("pretraining.export", f"checkpoint={run / 'checkpoints' / f'step_{step:08d}'}", f"output={output}")


def _command(module: str, *arguments: str) -> None:
    """Raises RuntimeError with what the command said where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)}: exit {done.returncode}\n{done.stdout[-4000:]}")
