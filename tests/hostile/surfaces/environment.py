"""What launchers and users leave in the environment."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.case import HARMLESS, TRAIN, Case, Place

RENDEZVOUS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
REFUSED_ENVIRONMENTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("SLURM_NTASKS", {"SLURM_PROCID": "0", "SLURM_NTASKS": "abc"}),
    ("SLURM_NTASKS", {"SLURM_PROCID": "0", "SLURM_NTASKS": "2(x3)"}),
    ("SLURM_NTASKS", {"SLURM_PROCID": "0", "SLURM_NTASKS": "9" * 5000}),
    ("SLURM_PROCID", {"SLURM_PROCID": "x", "SLURM_NTASKS": "2", **RENDEZVOUS}),
    ("SLURM_PROCID", {"SLURM_PROCID": "5", "SLURM_NTASKS": "2", **RENDEZVOUS}),
    ("MASTER_ADDR", {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}),
    ("WORLD_SIZE", {"RANK": "0", "WORLD_SIZE": "0"}),
    ("WORLD_SIZE", {"RANK": "0", "WORLD_SIZE": "-1"}),
    ("WORLD_SIZE", {"RANK": "0", "WORLD_SIZE": "1.5"}),
    ("WORLD_SIZE", {"RANK": "0", "WORLD_SIZE": ""}),
    ("RANK", {"RANK": "1", "WORLD_SIZE": "1"}),
    ("RANK", {"RANK": "-1", "WORLD_SIZE": "2", **RENDEZVOUS}),
    ("RANK", {"RANK": "a", "WORLD_SIZE": "2", **RENDEZVOUS}),
    ("LOCAL_RANK", {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}),
    ("LOCAL_RANK", {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x"}),
    ("LOCAL_WORLD_SIZE", {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "x"}),
    ("MASTER_PORT", {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}),
    ("MASTER_PORT", {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}),
    ("MASTER_PORT", {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}),
    ("MASTER_PORT", {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}),
)
HARMLESS_ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "x" * 5000},
    {"SLURM_JOB_END_TIME": "x", "SLURM_RESTART_COUNT": "x"},
    {"WANDB_MODE": "nonsense"},
    {"WANDB_MODE": "\x1b[31m"},
    {"CUDA_VISIBLE_DEVICES": "nonsense"},
    {"PYTHONHASHSEED": "x"},
    {"OMP_NUM_THREADS": "x"},
    {"COLUMNS": "x", "LINES": "-1"},
    {"TERM": "\x1b"},
    {"HYDRA_FULL_ERROR": "1"},
    {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null"},
)


def cases() -> Iterator[Case]:
    for number, (name, environment) in enumerate(REFUSED_ENVIRONMENTS):
        text = f"{number} {' '.join(f'{k}={v[:10]}' for k, v in environment.items())}"
        yield Case("environment", text, TRAIN, Place.train, name, environment=environment)
    for environment in HARMLESS_ENVIRONMENTS:
        text = " ".join(f"{k}={v[:10]!r}" for k, v in environment.items())
        yield Case("environment", text, TRAIN, Place.train, codes=HARMLESS, environment=environment)
