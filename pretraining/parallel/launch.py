"""Who this process is: rank, size and groups, as torchrun, the deepspeed launcher or srun set them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from data_pipeline.common.errors import EXIT_FAILED, InputError


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class World:
    """Ranks and groups of a running job.

    Micro-batches are dealt over the data-parallel ranks; the tensor-parallel ranks of one of them share its work.
    `host_group` (gloo, all ranks) reduces numbers that live on the host, without touching the device; `save_group`
    is another such, for the thread that writes checkpoints.
    """

    rank: int
    size: int
    device: Any
    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    host_group: Any = None
    save_group: Any = None
    data_group: Any = None
    tensor_group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """torchrun and deepspeed set RANK; srun sets SLURM_PROCID, and its job script MASTER_ADDR and MASTER_PORT."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in environment and int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if names[0] not in environment:
        return Launch()
    try:
        launch = Launch(*(int(environment.get(name, default)) for name, default in zip(names, "010", strict=True)))
    except ValueError as error:
        raise InputError(f"{', '.join(names)} must be whole numbers: {error}") from error
    missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if n not in environment]
    if launch.size > 1 and missing:
        raise InputError(f"{launch.size} ranks, but {' and '.join(missing)} not set: they could not find each other")
    return launch


def start_world(launch: Launch, tensor_parallel: int = 1, timeout_seconds: float = 1800) -> World:
    """Joins the process groups of a job (NCCL on GPUs, gloo on CPUs); a job of one process has none.

    Neighboring ranks share a tensor-parallel group: they are on one node.
    """
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if launch.size == 1:
        return World(0, 1, device)
    _thread_budget(launch)
    # we and DeepSpeed call collectives by names that newer torch versions deprecate, at every step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=launch.rank,
            world_size=launch.size,
            timeout=timedelta(seconds=timeout_seconds),
        )
    host_group = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    data_size = launch.size // tensor_parallel
    data_rank, tensor_rank = divmod(launch.rank, tensor_parallel)
    data_group, tensor_group = dist.group.WORLD, None
    if tensor_parallel > 1:
        data_group, tensor_group = _megatron_groups(tensor_parallel)
    return World(
        launch.rank,
        launch.size,
        device,
        data_rank,
        data_size,
        tensor_rank,
        tensor_parallel,
        host_group,
        dist.new_group(backend="gloo"),
        data_group,
        tensor_group,
    )


def _megatron_groups(tensor_parallel: int) -> tuple[Any, Any]:
    """-> (data-parallel group, tensor-parallel group), by megatron-core."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core import parallel_state
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_parallel)
    return parallel_state.get_data_parallel_group(), parallel_state.get_tensor_model_parallel_group()


def stop_world() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Ends this process at once, with this exit code.

    torch, DeepSpeed and megatron-core keep process groups in their globals. A thread of theirs that drops the last
    reference to a tensor while the interpreter winds up aborts the process ("terminate called without an active
    exception") after a perfect run: so it is not wound up. Nor are loader workers waited for, which an exception
    can leave behind and which ignore SIGTERM.
    """
    for child in multiprocessing.active_children():
        child.kill()
    if "torch.distributed" in sys.modules and code != EXIT_FAILED:  # else other ranks may wait in a collective
        stop_world()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def together(world: World, work: Callable[[], None]) -> None:
    """Does `work` on every rank. An InputError on one of them becomes one on all, so that they end alike."""
    failure = None
    try:
        work()
    except InputError as error:
        failure = error
    if host_sum(world, [float(failure is not None)])[0]:
        raise failure or InputError("another rank met bad input, see its message")


def host_sum(world: World, values: list[float]) -> list[float]:
    """Sums numbers that live on the host over the data-parallel ranks, in a collective of all ranks.

    Tensor-parallel ranks hold the same numbers; what only one of them knows (a signal, a fault) counts a fraction.
    """
    if world.host_group is None:
        return values
    import torch
    import torch.distributed as dist

    vector = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(vector, group=world.host_group)
    return (vector / world.tensor_size).tolist()


def broadcast_text(world: World, text: str) -> str:
    """Rank 0's text, on every rank."""
    if world.host_group is None:
        return text
    import torch
    import torch.distributed as dist

    size = torch.tensor([len(text.encode())])
    dist.broadcast(size, 0, group=world.host_group)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if world.is_main:
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    dist.broadcast(data, 0, group=world.host_group)
    return bytes(data.tolist()).decode()


def _thread_budget(launch: Launch) -> None:
    """Ranks that share a host's cores must not each start a thread per core."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", launch.size)))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
