"""A running job: this process's rank and device, and the grid of ranks that it is part of."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from data_pipeline.common.errors import InputError
from pretraining.parallel.launch import Launch
from pretraining.parallel.mesh import Axis, Mesh

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class World:
    """rank: of all `size` processes of the job."""

    rank: int
    size: int
    device: torch.device
    mesh: Mesh = field(default_factory=Mesh)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_world(launch: Launch, tensor_parallel: int = 1, timeout_seconds: float = 1800) -> World:
    """Joins the process groups of a job (NCCL on GPUs, gloo on CPUs); a job of one process has none.

    Neighboring ranks share a tensor-parallel group: they are on one node.
    """
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    if cuda:
        if launch.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"local rank {launch.local_rank} has no GPU: {torch.cuda.device_count()} visible, one a rank is needed"
            )
        torch.cuda.set_device(device)
    if launch.size == 1:
        return World(0, 1, device)
    _limit_threads(launch)
    # we and DeepSpeed call collectives by names that newer torch versions deprecate, at every step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=launch.rank,
            world_size=launch.size,
            timeout=timedelta(seconds=timeout_seconds),
        )
    return World(launch.rank, launch.size, device, _make_mesh(launch, tensor_parallel, cuda))


def _make_mesh(launch: Launch, tensor_parallel: int, cuda: bool) -> Mesh:
    import torch.distributed as dist

    data_rank, tensor_rank = divmod(launch.rank, tensor_parallel)
    everyone = dist.group.WORLD
    assert everyone is not None, "init_process_group made it"
    groups = {frozenset({Axis.DATA}): everyone} if tensor_parallel == 1 else _megatron_groups(tensor_parallel)
    return Mesh(
        sizes={Axis.DATA: launch.size // tensor_parallel, Axis.TENSOR: tensor_parallel},
        ranks={Axis.DATA: data_rank, Axis.TENSOR: tensor_rank},
        groups=groups,
        host_group=dist.new_group(backend="gloo") if cuda else everyone,
        save_group=dist.new_group(backend="gloo"),
    )


def _megatron_groups(tensor_parallel: int) -> dict[frozenset[Axis], ProcessGroup]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core import parallel_state
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_parallel)
    return {
        frozenset({Axis.DATA}): parallel_state.get_data_parallel_group(),
        frozenset({Axis.TENSOR}): parallel_state.get_tensor_model_parallel_group(),
    }


def stop_world() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _limit_threads(launch: Launch) -> None:
    """Ranks that share a host's cores must not each start a thread per core."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_size))
