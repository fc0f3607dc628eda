"""Who this process is: what torchrun, the deepspeed launcher or srun say in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.common.errors import InputError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
# What mpirun and mpiexec set (Open MPI, MPICH and Intel MPI, MVAPICH): rank, size. They are not read.
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment says.

    local_rank: among the ranks of this host, of which there are local_size.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """torchrun and deepspeed set RANK; srun sets SLURM_PROCID, and its job script MASTER_ADDR and MASTER_PORT.

    Raises InputError where ranks are not whole numbers, are none of the job, or could not find each other.
    """
    names = TORCHRUN
    tasks = 1 if "RANK" in environment else _number(environment, "SLURM_NTASKS", 1)
    if tasks > 1 and is_srun_task(environment):
        names = SLURM
    if "RANK" not in environment:
        _require_no_mpi(environment, by_srun=names == SLURM)
    if names[0] not in environment:
        if _number(environment, names[1], 1) != 1:
            raise InputError(
                f"{names[1]}={environment[names[1]]}, but {names[0]} is not set: each rank would train by itself; "
                f"start the job by torchrun or srun, or unset {names[1]}"
            )
        return Launch()
    rank, size, local_rank = (_number(environment, *entry) for entry in zip(names[:3], (0, 1, 0), strict=True))
    if size < 1 or not 0 <= rank < size:
        raise InputError(
            f"{names[0]}={rank} is no rank of {names[1]}={size}: ranks count from 0 to {size - 1}, and the job would "
            "wait for those that are missing"
        )
    if local_rank < 0:
        raise InputError(f"{names[2]}={local_rank} must not be negative")
    if size > 1:
        _require_meeting_point(environment, size)
    return Launch(rank, size, local_rank, max(1, _number(environment, names[3], size)))


def is_srun_task(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this process. The shells of sbatch and salloc have SLURM_PROCID=0 and SLURM_NTASKS as well:
    what is run there, a preflight say, is no rank, and would wait for others."""
    if "SLURM_PROCID" not in environment or "SLURM_JOB_ID" not in environment:
        return "SLURM_PROCID" in environment
    # slurm.h: the steps of such shells have numbers from 0xfffffffa on
    return re.fullmatch("[0-9]{1,9}", environment.get("SLURM_STEP_ID", "")) is not None


def _require_no_mpi(environment: Mapping[str, str], by_srun: bool) -> None:
    for rank, size in MPI:
        if by_srun and size == "PMI_SIZE":  # srun sets it too, and mpirun starts through srun without it
            continue
        if _number(environment, size, 1) > 1:
            raise InputError(
                f"{size}={environment[size]}, but RANK is not set: each rank would train by itself, mpirun's variables "
                f"are not read; start the job by torchrun or srun, or set RANK to {rank}, WORLD_SIZE to {size}, and "
                "LOCAL_RANK, MASTER_ADDR, MASTER_PORT"
            )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default)).strip()
    # int() takes other digits and underscores as well, and thousands of figures not at all
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise InputError(f"{name}={environment[name][:40]} must be a whole number")
    return int(text)


def _require_meeting_point(environment: Mapping[str, str], size: int) -> None:
    missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(n)]
    if missing:
        raise InputError(
            f"{size} ranks, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
            "the ranks could not find each other"
        )
    if not 0 < _number(environment, "MASTER_PORT", 0) < 1 << 16:
        raise InputError(f"MASTER_PORT={environment['MASTER_PORT']} is no port: 1 to 65535")
