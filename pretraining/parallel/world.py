"""A running job: this process's rank and device, and the grid of ranks that it is part of."""

from __future__ import annotations

import os
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from data_pipeline.common.errors import InputError
from pretraining.parallel.launch import Launch
from pretraining.parallel.meeting import TIMEOUT_SECONDS, Meeting
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.texts import gather_texts

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

MOST_TOLD = 4  # ranks, and GPUs that they share
OTHER_FILES = 256  # at least: data, workers, libraries


@dataclass(frozen=True)
class World:
    """rank: of all `size` processes of the job. meeting: where they met, and leave word of their end."""

    rank: int
    size: int
    device: torch.device
    mesh: Mesh = field(default_factory=Mesh)
    meeting: Meeting = field(default_factory=Meeting)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather_texts(self, text: str | None) -> list[str | None]:
        """Every rank's text, by rank, on every rank."""
        return [text] if self.mesh.host_group is None else gather_texts(text, self.mesh.host_group)


def find_device(launch: Launch) -> torch.device:
    """This rank's GPU, or the CPU. Nothing runs on it yet.

    Under srun --gpus-per-task=1 each rank sees its own GPU alone, as number 0, whatever its local rank.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch.local_rank % torch.cuda.device_count())


def require_own_devices(launch: Launch, ranks: Meeting) -> None:
    """Raises InputError on all ranks where several have the same GPU, or some have none. A collective, before any
    process group."""
    import torch

    device = find_device(launch)
    names = ranks.gather_texts(None if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid))
    lacking = [rank for rank, name in enumerate(names) if name is None]
    if 0 < len(lacking) < len(names):
        raise InputError(f"ranks {_listed(lacking)} see no GPU, the others do: is the driver of their host in order?")
    owners: dict[str | None, list[int]] = {}
    for rank, name in enumerate(names):
        owners.setdefault(name, []).append(rank)
    shared = [f"ranks {_listed(found)} have the same GPU" for name, found in owners.items() if name and found[1:]]
    if shared:
        raise InputError(
            f"{'; '.join(shared[:MOST_TOLD])}: one a rank is needed. Start as many ranks on a host as it has GPUs, or "
            "ask for more of them"
        )


def _listed(ranks: Sequence[int]) -> str:
    told = ", ".join(map(str, ranks[:MOST_TOLD]))
    return f"{told} and {len(ranks) - MOST_TOLD} more" if len(ranks) > MOST_TOLD else told


def start_world(launch: Launch, tensor_parallel: int = 1, meeting: Meeting | None = None) -> World:
    """Joins the process groups of a job (NCCL on GPUs, gloo on CPUs); a job of one process has none.

    Neighboring ranks share a tensor-parallel group: they are on one node. meeting: that of the ranks; its timeout is
    that of every group.
    """
    import torch
    import torch.distributed as dist

    device = find_device(launch)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    if launch.size == 1:
        return World(0, 1, device)
    _limit_threads(launch)
    _allow_sockets(launch)
    # we and DeepSpeed call collectives by names that newer torch versions deprecate, at every step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    seconds = TIMEOUT_SECONDS if meeting is None else meeting.timeout
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=None if meeting is None else meeting.store,
            rank=launch.rank,
            world_size=launch.size,
            timeout=timedelta(seconds=seconds),
        )
    mesh = _make_mesh(launch, tensor_parallel, cuda, seconds)
    return World(launch.rank, launch.size, device, mesh, meeting or Meeting())


def _make_mesh(launch: Launch, tensor_parallel: int, cuda: bool, seconds: float) -> Mesh:
    import torch.distributed as dist

    data_rank, tensor_rank = divmod(launch.rank, tensor_parallel)
    everyone = dist.group.WORLD
    assert everyone is not None, "init_process_group made it"
    groups = {frozenset({Axis.DATA}): everyone}
    if tensor_parallel > 1:
        groups = _axis_groups(launch, tensor_parallel, seconds)
    timeout = timedelta(seconds=seconds)  # not inherited: torch's default is half an hour
    return Mesh(
        sizes={Axis.DATA: launch.size // tensor_parallel, Axis.TENSOR: tensor_parallel},
        ranks={Axis.DATA: data_rank, Axis.TENSOR: tensor_rank},
        groups=groups,
        host_group=dist.new_group(backend="gloo", timeout=timeout) if cuda else everyone,
        save_group=dist.new_group(backend="gloo", timeout=timeout),
    )


def _axis_groups(launch: Launch, tensor_parallel: int, seconds: float) -> dict[frozenset[Axis], ProcessGroup]:
    """This rank's two groups. megatron-core would make seventeen for itself, on every rank, of which its layers use the
    one that they are given."""
    import torch.distributed as dist

    first = launch.rank - launch.rank % tensor_parallel
    members = {
        Axis.DATA: range(launch.rank % tensor_parallel, launch.size, tensor_parallel),
        Axis.TENSOR: range(first, first + tensor_parallel),
    }
    return {
        # made by its members alone: else every rank would wait for every other group's
        frozenset({axis}): dist.new_group(
            list(ranks), timeout=timedelta(seconds=seconds), use_local_synchronization=True, group_desc=axis.value
        )
        for axis, ranks in members.items()
    }


def _allow_sockets(launch: Launch) -> None:
    """gloo connects each rank with all others, once for each group of all ranks; besides, rank 0 hears from all at
    their meeting point. Raises InputError where the system allows fewer open files than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 30
    sockets = 3 * launch.size
    if most < sockets + OTHER_FILES:
        raise InputError(
            f"{launch.size} ranks need some {sockets + OTHER_FILES} open files each, and the limit is {hard}: raise it "
            "(ulimit -Hn, or LimitNOFILE of the service that starts the job)"
        )
    wanted = min(most, 4 * (launch.size + OTHER_FILES))  # DeepSpeed makes a group of all ranks for itself
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_groups(seconds: float) -> None:
    """Gives every process group this timeout, also those that DeepSpeed makes for itself with torch's half hour."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if dist.is_initialized():
        for group in list(distributed_c10d._world.pg_map):
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def stop_world() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _limit_threads(launch: Launch) -> None:
    """Ranks that share a host's cores must not each start a thread per core."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(launch, os.environ))


def threads_of(launch: Launch, environment: Mapping[str, str]) -> int:
    """A rank's share of the cores that this process may run on, or those that srun has given to each task."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    if "RANK" not in environment and given.isdecimal():  # under torchrun all ranks of a node are one task
        return max(1, min(cores, int(given)))
    return max(1, cores // launch.local_size)
