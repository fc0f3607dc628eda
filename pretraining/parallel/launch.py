"""Who this process is: what torchrun, the deepspeed launcher or srun say in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.common.errors import InputError


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """torchrun and deepspeed set RANK; srun sets SLURM_PROCID, and its job script MASTER_ADDR and MASTER_PORT.

    Raises InputError where ranks are not whole numbers or could not find each other.
    """
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
        raise InputError(
            f"{launch.size} ranks, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
            "the ranks could not find each other"
        )
    return launch
