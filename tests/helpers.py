"""What tests share: running commands, worlds of gloo ranks, reading metrics."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

TINY = (
    "model=gpt_debug",
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.max_seq_len=32",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler.warmup_steps=2",
    "optimizer.eps=1e-6",
    "tracking.wandb=disabled",
    "data.num_workers=0",
)


def prepare(*overrides: str) -> int:
    """pretrain-data within this process -> exit code."""
    return command("data_pipeline.prepare", *overrides)


def command(module: str, *overrides: str) -> int:
    """A command's main() within this process -> exit code."""
    import importlib
    from unittest import mock

    with mock.patch.object(sys, "argv", [module, *overrides]):
        return importlib.import_module(module).main()


def run_process(*command_line: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a user starts it."""
    return subprocess.run(
        command_line,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def pretrain_process(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_process(sys.executable, "-m", "pretraining.train", *overrides, **environment)


def start_ranks(
    size: int, *overrides: str, cwd: Path = ROOT, program: tuple[str, ...] = ("-m", "pretraining.train")
) -> list[subprocess.Popen[str]]:
    """`pretrain`, or another Python program, as `size` tasks of one srun."""
    port = free_port()
    return [start_rank(rank, size, port, *overrides, cwd=cwd, program=program) for rank in range(size)]


def start_rank(
    rank: int,
    size: int,
    port: int,
    *overrides: str,
    cwd: Path = ROOT,
    program: tuple[str, ...] = ("-m", "pretraining.train"),
) -> subprocess.Popen[str]:
    """One of these tasks, which may be given other overrides or stand in another folder than the others."""
    slurm = {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(size),
        "SLURM_LOCALID": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, *program, *overrides],
        cwd=cwd,
        text=True,
        env={**os.environ, **slurm},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def clean_processes() -> Any:
    """Processes forked from a server that has imported torch and runs no thread: a fork of the test process could
    inherit a lock that one of its threads holds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "pretraining.trainer", "tests.helpers"])
    return context


def run_world(
    size: int, function: Callable[..., Any], *arguments: Any, tensor_parallel: int = 1, timeout: float = 240
) -> list[Any]:
    """function(world, *arguments) on `size` gloo ranks, one process each -> their results (tensors, plain
    containers), by rank."""
    import torch

    context = clean_processes()
    queue = context.Queue()
    port = free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, tensor_parallel, queue, function, arguments))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    results: dict[int, Any] = {}
    for _ in ranks:
        rank, value, error = queue.get(timeout=timeout)
        if error:
            for process in ranks:
                process.kill()
            raise AssertionError(f"rank {rank} failed:\n{error}")
        results[rank] = torch.load(io.BytesIO(value))
    for process in ranks:
        process.join()
    return [results[rank] for rank in range(size)]


def _rank(
    rank: int, size: int, port: int, tensor_parallel: int, queue: Any, function: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    from pretraining.parallel.launch import read_launch
    from pretraining.parallel.world import start_world, stop_world

    try:
        torch.set_num_threads(1)
        result = io.BytesIO()  # a tensor in a queue would need its sender alive
        torch.save(function(start_world(read_launch(), tensor_parallel), *arguments), result)
        stop_world()
        queue.put((rank, result.getvalue(), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))


def train_in_world(world: Any, *overrides: str) -> None:
    """`pretrain` on the ranks of a world that stands already (several runs may follow one another)."""
    from pretraining.build import read_inputs
    from pretraining.config import load_config
    from pretraining.job import run
    from pretraining.run.signals import StopRequest

    config = load_config(list(overrides), world.size)
    run(config, read_inputs(config), world, Path(config.run_dir), StopRequest())


def train_alone(*overrides: str) -> None:
    from pretraining.parallel.launch import Launch
    from pretraining.parallel.world import start_world

    train_in_world(start_world(Launch()), *overrides)


def finished_weights(run_dir: Path) -> dict[str, Any]:
    """Every tensor of the newest checkpoint, whole."""
    import torch

    from pretraining.parallel.fragments import Fragment
    from pretraining.run.checkpoint_format import newest_checkpoint
    from pretraining.run.checkpoint_reader import load_tensors

    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    shapes = {n: tuple(e["shape"]) for n, e in checkpoint.manifest["tensors"].items()}
    tensors = {n: torch.zeros(s) for n, s in shapes.items()}
    load_tensors(checkpoint, [(Fragment.whole(n, shapes[n]), t) for n, t in tensors.items()])
    return tensors


def metrics(run_dir: Path | str) -> dict[int, dict[str, Any]]:
    """The training lines, by step."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def valid_losses(run_dir: Path | str) -> dict[int, float]:
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}
