"""What one rank finds of its machine: cores and memory that it was really given, its device, disk, arithmetic."""

from __future__ import annotations

import os
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.common.errors import InputError
from pretraining.parallel.launch import Launch
from pretraining.parallel.meeting import Meeting

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 22  # bytes
DISK_BYTES = 1 << 26  # that a rank writes
LEAST_REPEATS, MOST_REPEATS = 3, 1000
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}  # rows of the square matrices
REDUCED = {"cpu": 1 << 22, "cuda": 1 << 26}  # fp32 numbers of the all-reduce: 16 and 256 MB
GROUPS = Path("/sys/fs/cgroup")


@dataclass
class Health:
    """One rank's figures; None where it could not be measured. faults: what is not as it should be, whatever the
    other ranks have.

    node: as the scheduler names it. cores, memory_gb: that this process may use. device_gb: free memory of the GPU.
    disk_mb_per_second: of this rank, while all write. tflops: of a matrix product. gb_per_second: of an all-reduce, by
    what each rank sends and receives (bus bandwidth).
    """

    rank: int
    node: str
    device: str = "cpu"
    cores: float | None = None
    memory_gb: float | None = None
    device_gb: float | None = None
    disk_mb_per_second: float | None = None
    tflops: float | None = None
    gb_per_second: float | None = None
    faults: list[str] = field(default_factory=list)


def node_name(environment: Mapping[str, str] = os.environ) -> str:
    """The scheduler's name of this machine, since a container may have a name of its own."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def given_cores(group: Path | None = None) -> float:
    """Cores that this process may use: by its affinity, and by the quota of its control groups."""
    quotas = [float(len(os.sched_getaffinity(0)))]
    for folder in _groups(group):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas)


def given_memory(group: Path | None = None) -> int:
    """Bytes that this process may use: the machine's, or what a control group of it has."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    limits = [int(match[1]) * 1024] if match else []
    for folder in _groups(group):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        limits += [int(text)] if text.strip().isdigit() else []
    return min(limits, default=0)


def _groups(group: Path | None) -> Iterator[Path]:
    """The folders of the process's control groups and of those above them. group: in place of the process's."""
    if group is not None:
        yield group
        return
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, name = line.split(":", 2)
        root = GROUPS / controllers if controllers else GROUPS
        folder = root / name.lstrip("/")
        while folder != root.parent:
            yield folder
            folder = folder.parent


def _read(path: Path) -> str:
    """ "" where there is no such file: which of them there are depends on the kernel's version."""
    try:
        return path.read_text()
    except OSError:
        return ""


def asked_faults(health: Health, launch: Launch, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What SLURM was asked for and this rank does not have."""
    found = []
    asked = environment.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdigit() and health.cores is not None and health.cores < int(asked):
        found.append(f"{health.cores:g} cores, {asked} were asked for")
    gpus = environment.get("SLURM_GPUS_ON_NODE") or environment.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2]
    if gpus.isdigit() and int(gpus) > launch.local_rank and not health.device.startswith("cuda"):
        found.append(f"no GPU can be used, {gpus} on a node were asked for")
    return found


def measure_disk(folder: Path, rank: int, seconds: float) -> float:
    """MB/s of a file written and flushed, all ranks at once. Raises InputError where it cannot be written."""
    path = folder / f".check-{rank:05d}.tmp"
    chunk, written, began = os.urandom(CHUNK), 0, time.monotonic()
    try:
        with path.open("wb") as file:
            while written < DISK_BYTES and (written == 0 or time.monotonic() - began < seconds):
                file.write(chunk)
                written += CHUNK
            file.flush()
            os.fsync(file.fileno())
        taken = time.monotonic() - began
        path.unlink()
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror or error}") from error
    return written / taken / 1e6


def measure_product(device: torch.device, seconds: float) -> float:
    """TFLOP/s of a product of square matrices, bf16 on a GPU and fp32 on a CPU: the median of the repeats."""
    import torch

    size = PRODUCT_SIZE[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    taken = repeated(lambda: multiply(one, other), seconds)
    return 2 * size**3 / statistics.median(taken) / 1e12


def multiply(one: torch.Tensor, other: torch.Tensor) -> None:
    """Until the product is there."""
    import torch

    torch.matmul(one, other)
    if one.device.type == "cuda":
        torch.cuda.synchronize(one.device)


def repeated(work: Callable[[], None], seconds: float) -> list[float]:
    """The seconds of each repeat, after one that warms up."""
    work()
    taken: list[float] = []
    began = time.monotonic()
    while len(taken) < LEAST_REPEATS or time.monotonic() - began < seconds:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def measure_together(launch: Launch, meeting: Meeting, seconds: float) -> float:
    """GB/s that each rank sends, and receives, in an all-reduce of all ranks: the bus bandwidth, which ring algorithms
    have in common. A collective; with a slow link all ranks have its figure."""
    import torch
    import torch.distributed as dist

    from pretraining.parallel.world import start_world, stop_world

    world = start_world(launch, 1, meeting)
    values = torch.ones(REDUCED[world.device.type], device=world.device)

    def reduce() -> None:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)

    reduce()
    slowest = torch.tensor(min(repeated(reduce, 0.0)), device=world.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    repeats = max(LEAST_REPEATS, min(MOST_REPEATS, int(seconds / 2 / max(slowest.item(), 1e-6))))  # the same on all
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        reduce()
        taken.append(time.perf_counter() - start)
    sent = 2 * (launch.size - 1) / launch.size * values.numel() * values.element_size()
    stop_world()
    return sent / statistics.median(taken) / 1e9
