"""Real process groups on a CPU: a function runs on every rank of a gloo world."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_world(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` on each of `size` ranks -> what they returned: tensors and plain containers."""
    mp.get_context("forkserver").set_forkserver_preload(["torch._dynamo", "pretraining.optim.base"])
    forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (size, folder, function, arguments), size, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def _rank(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
