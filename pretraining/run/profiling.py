"""Looks closer at single steps: a trace of torch's profiler, the slowest operations, and on GPUs a snapshot of the
memory that each tensor takes, beside the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pretraining.run.terminal import tell, warn

FOLDER = "profile"
MEMORY_EVENTS = 200_000
ROWS = 30


class StepProfiler:
    """steps: whose training is profiled. ranks: which profile them. Other steps and ranks are left as they are."""

    def __init__(self, run_dir: Path, steps: Sequence[int], ranks: Sequence[int], rank: int) -> None:
        self.folder, self.rank = run_dir / FOLDER, rank
        self.steps = frozenset(steps) if rank in ranks else frozenset()

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Forward, backward and update of a step; waiting for its data is before it."""
        if step not in self.steps:
            yield
            return
        on_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        if on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        with profile(activities=activities, record_shapes=True, profile_memory=True, with_stack=True) as found:
            yield
            if on_gpu:
                torch.cuda.synchronize()  # what the step has launched is part of it
        self._write(found, step, on_gpu)

    def _write(self, found: profile, step: int, on_gpu: bool) -> None:
        name = self.folder / f"step_{step:08d}.rank_{self.rank:05d}"
        try:
            self.folder.mkdir(exist_ok=True)
            found.export_chrome_trace(f"{name}.json.gz")
            order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
            table = found.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
            Path(f"{name}.txt").write_text(table)
            if on_gpu:
                torch.cuda.memory._dump_snapshot(f"{name}.memory.pickle")
                torch.cuda.memory._record_memory_history(enabled=None)
        except OSError as error:
            warn(f"warning: the profile of step {step} cannot be written: {error}")
        else:
            tell(f"profile of step {step}: {name}.json.gz (for https://ui.perfetto.dev), {name.name}.txt")


UNPROFILED = StepProfiler(Path(), (), (), 0)
