"""Small jobs of real processes that faults are tried on."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.helpers import TINY, clean_processes, free_port, metrics

STEPS = 30


class Job:
    """`pretrain` as `size` tasks of one srun, in processes of their own. fault: see inject.py.

    They are forked from a server that has imported torch already: that takes most of the start.
    """

    def __init__(self, corpus: Path, run_dir: Path, *more: str, size: int = 2, fault: str = "") -> None:
        overrides = (
            *TINY,
            f"data.path={corpus}",
            f"run_dir={run_dir}",
            f"train.steps={STEPS}",
            "train.checkpoint_every=5",
            "model.dropout=0.1",
            *(["modules=[tests.faults.inject]"] if fault else []),
            *more,
        )
        self._start("pretraining.train", run_dir, overrides, size, fault)

    @classmethod
    def replaying(cls, run_dir: Path, step: int, size: int, fault: str = "") -> Job:
        """`pretrain-replay` instead."""
        job = cls.__new__(cls)
        overrides = (f"run_dir={run_dir}", f"step={step}", *(["modules=[tests.faults.inject]"] if fault else []))
        job._start("pretraining.commands.replay", run_dir, overrides, size, fault)
        return job

    def _start(self, module: str, run_dir: Path, overrides: tuple[str, ...], size: int, fault: str) -> None:
        self.run_dir = run_dir
        self.ended_at: dict[int, float] = {}
        handle, log = tempfile.mkstemp()
        os.close(handle)
        self.log = Path(log)
        port = str(free_port())
        self.ranks = []
        for rank in range(size):
            environment = {
                "SLURM_PROCID": str(rank),
                "SLURM_NTASKS": str(size),
                "SLURM_LOCALID": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "FAULT": fault,
            }
            process = clean_processes().Process(target=_run, args=(module, log, overrides, environment))
            process.start()
            self.ranks.append(process)

    def end_of(self, rank: int, seconds: float) -> int | None:
        """Waits for a rank -> its exit code."""
        self.ranks[rank].join(seconds)
        return self.ranks[rank].exitcode

    def ends(self, seconds: float = 120) -> list[int]:
        """Waits until all ranks have ended -> their exit codes."""
        deadline = time.monotonic() + seconds
        while len(self.ended_at) < len(self.ranks):
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"some ranks did not end within {seconds} s:\n{self.output()}")
            for rank, process in enumerate(self.ranks):
                if process.exitcode is not None:
                    self.ended_at.setdefault(rank, time.monotonic())
            time.sleep(0.05)
        return [process.exitcode for process in self.ranks]

    def seconds_after_first_end(self) -> float:
        return max(self.ended_at.values()) - min(self.ended_at.values())

    def kill(self) -> None:
        for process in self.ranks:
            process.kill()
            process.join()

    def output(self) -> str:
        return self.log.read_text()

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Until this start has trained it."""
        deadline = time.monotonic() + seconds
        while f"step {step}/" not in self.output():
            if time.monotonic() > deadline or all(p.exitcode is not None for p in self.ranks):
                raise AssertionError(f"step {step} was not reached:\n{self.output()}")
            time.sleep(0.02)


def _run(module: str, log: str, overrides: tuple[str, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = ["pretrain", *overrides]
    multiprocessing.set_start_method("fork", force=True)  # for loader workers: that of a user's process
    import torch

    from pretraining.run.process import end_process

    torch.set_num_threads(1)
    try:
        code = importlib.import_module(module).main()
    except Exception:
        traceback.print_exc()
        code = 1
    end_process(code)


def losses(run_dir: Path) -> list[tuple[object, ...]]:
    """What must be equal bit for bit between a disturbed run and an undisturbed one."""
    keys = ("step", "loss", "grad_norm", "lr", "batch_hash", "samples", "tokens")
    return [tuple(line[key] for key in keys) for line in metrics(run_dir).values()]
