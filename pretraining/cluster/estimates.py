"""What a run will need, before it has a node: bytes of its checkpoints, seconds of a step and of a save.

A measured figure is taken where there is one: from checkpoints of the run, from metrics.jsonl and run.json of an
earlier one. Only where there is none is torch imported, which takes seconds, and the model's shapes are looked at.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json_if_there, typed
from pretraining.cluster.plan import Plan
from pretraining.config import identity
from pretraining.models.vocabulary import Vocabulary
from pretraining.run.metrics import METRICS, read_metrics
from pretraining.run.run_dir import Recorded

if TYPE_CHECKING:
    from pretraining.models.base import Model
    from pretraining.objectives.base import Objective

RECENT_STEPS = 200  # of an earlier run, which are looked at
SAME_WORK = ("model.", "objective.", "data.seq_len")  # keys that decide how long a sequence takes


@dataclass(frozen=True)
class StepTime:
    """seconds: of a usual step; slow_seconds: which one step in twenty exceeds. source: where that comes from.
    measured: whether anybody has seen it."""

    seconds: float
    slow_seconds: float
    source: str
    measured: bool


@dataclass(frozen=True)
class Unknown:
    """reason: why, in words."""

    reason: str


class Shapes:
    """The model of a plan without values. vocabulary, objective: as the prepared data make them."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary, objective: Objective) -> None:
        self.plan, self.vocabulary, self.objective = plan, vocabulary, objective

    @cached_property
    def model(self) -> Model:
        from pretraining.build import freeze
        from pretraining.models.shapes import shapes_of

        model = shapes_of(self.plan.run.model, self.vocabulary, self.objective)
        freeze(model, self.plan.run.train.freeze)
        return model

    @cached_property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights in fp32, and the optimizer's state of those that are trained."""
        import torch

        from pretraining.optim.base import ParameterShard, Settings
        from pretraining.optim.registry import build_update_rule
        from pretraining.parallel.fragments import Fragment

        rule, total = build_update_rule(self.plan.run.optimizer), 0
        for parameter in self.model.parameters():
            total += 4 * parameter.numel()
            if parameter.requires_grad:
                shape = tuple(parameter.shape)
                value = torch.empty(shape, device="meta")
                shard = ParameterShard(Fragment.whole("", shape), value, Settings(0.0), 0)
                total += sum(state.numel() * state.element_size() for state in rule.initial_state(shard).values())
        return total

    def flops_per_step(self) -> float:
        """Forward and backward, over all ranks, of a batch without padding."""
        run = self.plan.run
        units = run.seq_len if run.data_kind != "images" else 1
        return self.objective.flops_per_unit(self.model) * units * run.train.global_batch_size


def saved_bytes(manifest: Mapping[str, Any]) -> int:
    """Of a checkpoint's files."""
    return sum(manifest["files"].values())


def step_time(plan: Plan, fingerprint: str, shapes: Shapes) -> StepTime | Unknown:
    """By an earlier run, else by FLOPs. fingerprint: of the data."""
    measured = _measured(plan, fingerprint)
    if isinstance(measured, StepTime) or plan.cluster.measured is not None:
        return measured
    cluster = plan.cluster
    if cluster.peak_tflops is None or not cluster.gpus_per_node:
        return Unknown(f"{measured.reason}; cluster.measured=RUN or cluster.peak_tflops would tell")
    seconds = shapes.flops_per_step() / (plan.cluster.ranks * cluster.peak_tflops * 1e12 * cluster.mfu)
    source = f"by FLOPs, at {cluster.mfu:.0%} of {cluster.peak_tflops:g} TFLOP/s"
    return StepTime(seconds, seconds, source, measured=False)


def _measured(plan: Plan, fingerprint: str) -> StepTime | Unknown:
    folder = Path(plan.cluster.measured) if plan.cluster.measured is not None else plan.run_dir
    if not (folder / METRICS).is_file():
        if plan.cluster.measured is not None:
            raise InputError(f"cluster.measured={folder}: it has no {METRICS}")
        return Unknown("no step of this run was measured yet")
    steps = list(_step_seconds(folder))[-RECENT_STEPS:]
    if not steps:
        return Unknown(f"{folder / METRICS} has no step")
    then = typed(read_json_if_there(folder / "run.json"), Recorded, str(folder / "run.json")).identity
    now = identity(plan.run, fingerprint)
    other = [k for k in now if k.startswith(SAME_WORK) and k in then and then[k] != now[k]]
    if other:
        return Unknown(f"{folder} was another model: {', '.join(other[:3])}")
    ranks = ranks_of(folder)
    if ranks is None:
        return Unknown(f"{folder} does not say how many ranks it had")
    batch = then.get("train.global_batch_size")
    if type(batch) is not int or batch < 1:
        return Unknown(f"{folder} does not say how large its global batch was")
    scale = plan.run.train.global_batch_size / batch * ranks / plan.cluster.ranks
    source = f"{len(steps)} steps of {folder}"
    if scale != 1.0:
        source += f", scaled from {ranks} ranks and a batch of {batch}"
    slow = sorted(steps)[int(0.95 * (len(steps) - 1))]
    return StepTime(statistics.median(steps) * scale, slow * scale, source, measured=True)


def _step_seconds(folder: Path) -> Iterator[float]:
    for line in read_metrics(folder / METRICS):
        seconds = line.get("step_seconds")
        if isinstance(seconds, int | float) and seconds > 0:
            yield float(seconds)


def ranks_of(folder: Path) -> int | None:
    """How many ranks a run last had."""
    found = read_json_if_there(folder / "ranks" / "rank_00000.json").get("ranks")
    return found if isinstance(found, int) and found > 0 else None


def save_seconds(plan: Plan, checkpoint_bytes: int) -> tuple[float, str] | Unknown:
    """-> (seconds of a save, where that comes from)."""
    measured = plan.cluster.measured
    for folder in (plan.run_dir, *([Path(measured)] if measured is not None else [])):
        seconds = read_json_if_there(folder / "run.json").get("save_seconds")
        if isinstance(seconds, int | float) and seconds >= 0:
            return float(seconds), f"as measured in {folder}"
        rate = read_json_if_there(folder / "slurm" / "check.json").get("disk_mb_per_second")
        if isinstance(rate, int | float) and rate > 0:
            return checkpoint_bytes / (rate * 1e6), f"at the {rate:.0f} MB/s that all ranks wrote in {folder}"
    return Unknown("no save was measured yet")
