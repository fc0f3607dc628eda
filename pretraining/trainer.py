"""The only training loop. It calls everything itself, in the order in which a batch meets it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.common.errors import Failure, InputError
from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.loader import Fault, MicroBatch
from data_pipeline.stream.stream import Position
from pretraining.engines.base import Engine
from pretraining.objectives.base import Objective
from pretraining.parallel.launch import World, host_sum
from pretraining.run.checkpoint import Saver, checkpoint_folder, prune_checkpoints
from pretraining.run.faults import NonFiniteWatch, Stopped, StopRequest
from pretraining.run.throughput import device_peak, utilization

Feed = Iterator[tuple[MicroBatch | Fault, Position]]


@dataclass
class StepData:
    """What one rank does in one step, and the totals over all ranks."""

    micro_batches: list[MicroBatch]
    position: Position  # after this step's global batch
    counts: dict[str, float]
    tokens: int
    batch_hash: int
    stop: bool


@dataclass
class Pending:
    """A step whose numbers are still on the device: they are read a step later, so that nothing waits for them."""

    line: dict[str, Any]
    counts: dict[str, float]
    numbers: Tensor  # fp64: the terms' sums, gradient norm, finite, loss scale


class Trainer:
    """config: the RunConfig; identity: what of it a checkpoint is bound to. feed and valid_feed make loaders:
    feed(position), valid_feed(). flops_per_unit: of a token or an image, the objective's unit."""

    def __init__(
        self,
        config: Any,
        identity: dict[str, Any],
        engine: Engine,
        objective: Objective,
        feed: Any,
        valid_feed: Any,
        tracker: Any,
        world: World,
        run_dir: Path,
        stop: StopRequest,
        flops_per_unit: float,
    ) -> None:
        self.config, self.train, self.engine, self.objective = config, config.train, engine, objective
        self.identity = identity
        self.feed, self.valid_feed, self.tracker, self.world = feed, valid_feed, tracker, world
        self.run_dir, self.stop, self.flops_per_unit = run_dir, stop, flops_per_unit
        self.unit = objective.unit.value
        self.reported = [*objective.terms, *objective.metrics]
        self.step, self.tokens, self.position = 0, 0, Position()
        self.saved_step = self.evaluated_step = -1
        self.watch, self.saver = NonFiniteWatch(), Saver(world)
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
        self.peak = device_peak(name)

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on where `save` was called; the engine's tensors are loaded already."""
        self.step, self.tokens, self.evaluated_step = (state[key] for key in ("step", "tokens", "evaluated_step"))
        self.position = Position.from_json(state["position"])
        self.saved_step = self.step

    def fit(self) -> None:
        """Trains up to train.steps. Raises Stopped once a signal was obeyed and the checkpoint saved."""
        if self.train.eval_every and self.step == 0 and self.evaluated_step != 0:
            self.evaluate()
        steps, pending = self._steps(self.feed(self.position)), None
        began = time.perf_counter()
        while self.step < self.train.steps:
            data = next(steps)
            if data.stop:
                self._finish(pending)
                raise Stopped
            numbers, lr = self._train_step(data)
            self._report(pending)
            now = time.perf_counter()
            pending = self._pending(data, numbers, lr, now - began)
            began = now
            if self._due(self.train.eval_every) or self._due(self.train.checkpoint_every):
                self._report(pending)
                pending = None
                self._pause()
                began = time.perf_counter()
        self._finish(pending)

    def evaluate(self) -> float:
        """The mean loss over the first train.eval_batches global batches of the validation split."""
        sums = dict.fromkeys(self.reported, 0.0)
        counts = dict.fromkeys(self.reported, 0.0)
        steps = self._steps(self.valid_feed())
        for _ in range(self.train.eval_batches):
            data = next(steps)
            for batch in data.micro_batches:
                for term, value in self.engine.evaluate(self._to_device(batch)).items():
                    sums[term] += float(value)
            for term, count in data.counts.items():
                counts[term] += count
        totals = dict(zip(sums, host_sum(self.world, list(sums.values())), strict=True))
        terms, loss = self._means(totals, counts)
        each = {f"valid_{term}": value for term, value in terms.items()} if len(terms) > 1 else {}
        line = {"valid_loss": loss, **each}
        self.tracker.log({"step": self.step, **{k: v if math.isfinite(v) else None for k, v in line.items()}})
        self.evaluated_step = self.step
        return loss

    def save(self) -> None:
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "evaluated_step": self.evaluated_step,
            "position": self.position.as_json(),
            "identity": self.identity,
        }
        prune = partial(prune_checkpoints, self.run_dir / "checkpoints", self.train.keep_last, self.train.keep_every)
        self.saver.save(self.engine.tensors(), state, checkpoint_folder(self.run_dir, self.step), prune)
        self.saved_step = self.step

    def _steps(self, feed: Feed) -> Iterator[StepData]:
        """Gathers the micro-batches of each step and sums their counts over the ranks, on the host."""
        share = self.train.global_batch_size // (self.train.micro_batch_size * self.world.data_size)
        while True:
            items = [next(feed) for _ in range(share)]
            faults = [item.message for item, _ in items if isinstance(item, Fault)]
            batches = [item for item, _ in items if isinstance(item, MicroBatch)]
            content = sum(b.content_hash for b in batches) % 2**64
            mine = [
                len(faults),
                self.stop.reason is not None,
                sum(b.tokens for b in batches),
                content % 2**32,
                content >> 32,
                *(sum(b.counts[t] for b in batches) for t in self.reported),
            ]
            fault, stop, tokens, low, high, *counts = host_sum(self.world, [float(x) for x in mine])
            if fault:
                raise InputError(faults[0] if faults else "another rank met a fault in the data, see its message")
            yield StepData(
                batches,
                items[-1][1],
                dict(zip(self.reported, counts, strict=True)),
                int(tokens),
                (int(low) + (int(high) << 32)) % 2**64,
                bool(stop),
            )

    def _train_step(self, data: StepData) -> tuple[Tensor, float]:
        """-> (the numbers that tell how it went, still on the device; the learning rate)."""
        step, sums = self.step + 1, torch.zeros(len(self.reported), device=self.world.device)
        for index, batch in enumerate(data.micro_batches):
            self._seed_dropout(step, index)
            losses = self.engine.forward(self._to_device(batch))
            self.engine.backward(self._weighted(losses, data.counts), last=index == len(data.micro_batches) - 1)
            sums += torch.stack([losses[term].detach() for term in self.reported])
        lr = self.config.optimizer.lr * self.config.scheduler.ratio(step, self.train.steps)
        self.engine.step(lr)
        if self.world.data_size > 1:
            dist.all_reduce(sums, group=self.world.data_group)
        self.step, self.position = step, data.position
        self.tokens += data.tokens
        optimizer = self.engine.optimizer
        return torch.cat([sums, torch.stack([optimizer.grad_norm, optimizer.finite, optimizer.loss_scale])]), lr

    def _weighted(self, losses: dict[str, Tensor], counts: dict[str, float]) -> Tensor:
        """Each term is divided by its own count over the whole global batch."""
        terms = self.objective.terms
        return torch.stack([losses[t] * (terms[t] / max(1.0, counts[t])) for t in terms]).sum()

    def _means(self, sums: dict[str, float], counts: dict[str, float]) -> tuple[dict[str, float], float]:
        """-> (each term and metric by its own count, NaN where nothing was counted; the loss, to which such a term adds
        nothing)."""
        means = {term: value / counts[term] if counts[term] else math.nan for term, value in sums.items()}
        return means, sum(weight * means[term] for term, weight in self.objective.terms.items() if counts[term])

    def _pending(self, data: StepData, numbers: Tensor, lr: float, seconds: float) -> Pending:
        line = {
            "step": self.step,
            "lr": lr,
            "samples": self.position.number,
            self.unit: self.tokens,
            "step_seconds": seconds,
            f"{self.unit}_per_second": data.tokens / seconds,
            "batch_hash": data.batch_hash,
            **utilization(self.flops_per_unit * data.tokens, seconds, self.world.size, self.peak),
        }
        return Pending(line, data.counts, numbers)

    def _report(self, pending: Pending | None) -> None:
        if pending is None:
            return
        *sums, grad_norm, finite, loss_scale = pending.numbers.tolist()
        self.watch.see(pending.line["step"], bool(finite))
        terms, loss = self._means(dict(zip(self.reported, sums, strict=True)), pending.counts)
        line = {
            "step": pending.line["step"],
            "loss": loss if math.isfinite(loss) else None,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else 1e308,
            **pending.line,
        }
        if len(terms) > 1:
            line |= {t: value if math.isfinite(value) else None for t, value in terms.items()}
        if not finite:
            line["skipped"] = True
        if self.train.precision == "fp16":
            line["loss_scale"] = loss_scale
        if line["step"] % self.train.log_every == 0 or line["step"] in (1, self.train.steps):
            self.tracker.log(line)

    def _pause(self) -> None:
        if self._due(self.train.eval_every):
            self.evaluate()
        if self._due(self.train.checkpoint_every):
            self.save()

    def _finish(self, pending: Pending | None) -> None:
        self._report(pending)
        complete = self.step == self.train.steps
        if complete and self.train.eval_every and self.evaluated_step != self.step:
            self.evaluate()
        if self.saved_step != self.step:
            self.save()
        if not self.saver.wait():
            self.save()  # a disk that was full may have room by now
            if not self.saver.wait():
                raise Failure(f"the last checkpoint, of step {self.step}, could not be saved, see the warnings")

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        """Masks depend on what they are for, not on what was drawn before: a resumed run draws the same."""
        rng = generator(self.train.seed, Purpose.DROPOUT, step, micro_batch, self.world.data_rank)
        torch.manual_seed(int(rng.integers(2**63)))

    def _to_device(self, batch: MicroBatch) -> dict[str, Tensor]:
        return {name: array.to(self.world.device, non_blocking=True) for name, array in batch.arrays.items()}
