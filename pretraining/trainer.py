"""The only training loop. It calls everything itself, in the order in which a batch meets it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.common.errors import Failure, InputError
from data_pipeline.loader import MicroBatch
from pretraining.config import RunConfig, course
from pretraining.dropout import dropout_ends
from pretraining.engines.base import Engine
from pretraining.evaluation import evaluate
from pretraining.feeds import Feeds, Json, StepData, gather_steps
from pretraining.objectives.base import Objective
from pretraining.parallel.host import broadcast_text, host_sum
from pretraining.parallel.world import World
from pretraining.randomness import dropout_seed
from pretraining.record import Pending, Record
from pretraining.run.agreement import require_equal_replicas, require_ownership
from pretraining.run.checkpoint_format import checkpoint_folder
from pretraining.run.faults import NonFiniteWatch, SplitWatch, TargetWatch
from pretraining.run.incidents import Incidents
from pretraining.run.layer_norms import LayerNorms
from pretraining.run.metrics import EvaluationLine, TrainingLine, means
from pretraining.run.roll_back import passed_over, roll_back
from pretraining.run.saving import CheckpointKeeper
from pretraining.run.signals import Stopped, StopRequest
from pretraining.run.slow_ranks import SlowRankWatch

CONTROL = ("grad_norm", "finite", "loss_scale")  # what the optimizer says of a step, before the sums of the loss


class Trainer:
    """Trains an engine's model on the batches of `feeds`, and records it."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        objective: Objective,
        feeds: Feeds,
        record: Record,
        stop: StopRequest,
        world: World,
    ) -> None:
        self.config, self.train, self.engine, self.objective = config, config.train, engine, objective
        self.feeds, self.record, self.stop, self.world = feeds, record, stop, world
        self.reported = [*objective.terms, *objective.metrics]
        self.step, self.units, self.position, self.training_seconds = 0, 0, feeds.start(), 0.0
        self.evaluated_step, self.split = -1, SplitWatch(config.train.eval_batches)
        self.pending: Pending | None = None
        self.watch, self.targets = NonFiniteWatch(), TargetWatch(objective.terms, config.train.global_batch_size)
        self.keeper = CheckpointKeeper(config.train, world, record.folder, record.tracker)
        self.phases, self.slow_ranks = record.phases, SlowRankWatch()
        batch_size, rolls_back = self.train.global_batch_size, self.train.on_spike == "rollback"
        self.incidents = Incidents(record.folder, feeds.origins, batch_size, world.is_main, rolls_back)
        self.layers = LayerNorms(config.tracking.layers_every, engine.optimizer)
        self.phases.describe_batch = lambda: self.incidents.describe(self.position)

    def resume(self, state: Json) -> None:
        """Goes on where `save` was called; the engine's tensors are loaded already."""
        self.step, self.units = state["step"], state["tokens"]
        self.training_seconds = state.get("training_seconds", 0.0)
        self.position = state["position"]
        # A step is saved before it is evaluated: what metrics.jsonl has is not evaluated again.
        logged = int(broadcast_text(self.world, str(self.record.tracker.evaluated_step)))
        self.evaluated_step = max(state["evaluated_step"], logged)
        self.keeper.saved_step = self.step
        self.watch.resume(state.get("skipped", {}))
        self.incidents.resume(state.get("losses", ()))

    def fit(self) -> None:
        """Trains up to train.steps. Raises Stopped once a signal was obeyed and the checkpoint saved; InputError for
        data that cannot be read, after the last whole step was saved; Failure."""
        try:
            self._fit()
        except InputError:  # of the data: all ranks raise it together
            self._save_what_stands()
            raise
        except Exception:  # whatever it is: the checkpoint that is being written is finished first
            self.keeper.wait()
            raise

    def _fit(self) -> None:
        if self._is_evaluation_due():
            self.evaluate()
        self._train()
        while self._is_to_roll_back():
            self._roll_back()
            self._train()
        self._end()

    def _train(self) -> None:
        """Up to train.steps, or to a loss spike that asks for a roll-back."""
        steps = self.steps()
        began = time.perf_counter()
        while self.step < self.train.steps:
            data = next(steps)
            if data.totals.stop:
                self._stop()
            if data.totals.spiked:
                steps.close()
                break
            with self.record.profiler.around(self.step + 1):
                began = self.train_step(data, began)
            self.stop.trained = True
            save, evaluate = self.keeper.is_due(self.step), self._is_evaluation_due()
            if save or evaluate:
                self.report()
                if save and self.watch.in_a_row == 0 and not self._is_to_roll_back():
                    self.save()
                if evaluate and self.step < self.train.steps:  # the last one waits for the last checkpoint to begin
                    self.evaluate()
                began = time.perf_counter()
        self.report()

    def _is_to_roll_back(self) -> bool:
        """Whether some rank saw a loss spike that is still to be undone. A collective of all ranks."""
        return self.incidents.rolls_back and host_sum(self.world, [float(self.incidents.spiked)])[0] > 0

    def _end(self) -> None:
        """The last checkpoint is written while the last evaluation runs."""
        if self.watch.is_doubtful:
            raise Failure(
                f"the last {self.watch.in_a_row} steps were skipped, their gradients were not finite: the run is not "
                f"done. It goes on from {self.keeper.newest()}"
            )
        if self.keeper.saved_step != self.step:
            self.save()
        if self.train.eval_every and self.evaluated_step != self.step:
            self.evaluate()
            if self.evaluated_step != self.step:
                self._stop()
        self.keeper.finish(self.step, self.save)

    def _stop(self) -> NoReturn:
        """Raises Stopped, once what can be saved is saved."""
        self.stop.answered = True  # what follows has timeouts of its own
        self.report()
        if self.step == 0:
            raise Stopped("no step was trained yet, so that there is nothing to save")
        if self._is_to_roll_back():  # what would be saved has the spike's update in it
            self._roll_back()
        if self.watch.is_doubtful:
            self.keeper.wait()
            raise Stopped(
                f"step {self.step} is not saved, as steps are being skipped: the run stands at {self.keeper.newest()}"
            )
        self.keeper.finish(self.step, self.save)
        raise Stopped(f"step {self.step} is saved in {checkpoint_folder(self.record.folder, self.step)}")

    def _save_what_stands(self) -> None:
        """Before an error ends the run, which is what is to be told, whatever else fails."""
        if self.step == 0:
            return
        try:
            self._stop()
        except Stopped as stopped:
            self.record.tracker.note(str(stopped))
        except Failure as failure:
            self.record.tracker.note(f"warning: {failure}")

    def steps(self) -> Generator[StepData]:
        """The data of the steps to come, from where the run stands, without what a roll-back has passed over."""
        while True:
            self.position = passed_over(self.incidents.roll_backs, self.step, self.position)
            self.phases.step = self.step + 1
            feed, share = self.feeds.training(self.position), self.feeds.share.micro_batches
            spiked = lambda: self.incidents.spiked  # noqa: E731
            steps = gather_steps(feed, share, self.reported, self.world, self.stop, self.phases, spiked)
            with contextlib.closing(steps):  # and its workers
                for data in steps:
                    yield data
                    if passed_over(self.incidents.roll_backs, self.step, self.position) != self.position:
                        break

    def _roll_back(self) -> None:
        """After a loss spike: to the last checkpoint before it, and on with the data that comes now. All ranks."""
        self.phases.enter("save")
        self.keeper.wait()
        tensors, tracker = self.engine.tensors(), self.record.tracker
        state = roll_back(self.incidents, tensors, tracker, self.world, self.step, self.position)
        if state is not None:
            self.engine.after_load()
            self.resume(state)

    def train_step(self, data: StepData, began: float) -> float:
        """One update. began: when the one before ended, in perf_counter's seconds -> when this one did.

        Nothing here waits for the device: the step's numbers are read when the next one has been launched.
        """
        step = self.step + 1
        # Each term is divided by its own count over the whole global batch, and so is the same however that is cut.
        weights = {term: w / max(1.0, data.totals.counts[term]) for term, w in self.objective.terms.items()}
        seeds = [
            dropout_seed(self.train.seed, step, number, self.world.mesh.batch_rank)
            for number in range(len(data.micro_batches))
        ]
        with dropout_ends(step, self.train.steps, self.train.dropout_until):
            sums = self.engine.run([batch.arrays for batch in data.micro_batches], weights, seeds)
        lr = self.config.optimizer.lr * self.config.scheduler.ratio(step, self.train.steps)
        self.phases.enter("step")
        self.layers.ask(step)
        self.engine.step(lr)
        numbers = self._numbers(sums, data.micro_batches)
        start = self.position
        self.step, self.position, self.phases.step = step, data.position, step + 1
        self.units += data.totals.units
        self.report()  # of the step before
        now = time.perf_counter()
        samples, drawn = self.feeds.samples(self.position), self.feeds.drawn(self.position)
        self.training_seconds += now - began
        times = (now - began, self.phases.take_data_seconds(), self.training_seconds)
        self.pending = Pending(
            step, start, lr, samples, self.units, data.totals, *times, drawn, numbers, self.engine.optimizer.measured
        )
        return now

    def _numbers(self, sums: dict[str, Tensor], micro_batches: Sequence[MicroBatch]) -> Tensor:
        """This rank's sums of the loss -> the numbers of a Pending step, on the device."""
        mesh, optimizer = self.world.mesh, self.engine.optimizer
        total = torch.stack([sums[name] for name in self.reported])
        if mesh.gradient_ranks > 1:
            own = torch.zeros(mesh.batch_ranks, device=total.device)  # other ranks' losses are theirs to fill in
            for term, weight in self.objective.terms.items():
                count = sum(batch.counts[term] for batch in micro_batches)
                own[mesh.batch_rank] += weight * sums[term] / max(1.0, count)
            total = torch.cat([total, own])
            dist.all_reduce(total, group=mesh.gradient_group)
        return torch.cat([torch.stack([optimizer.grad_norm, optimizer.finite, optimizer.loss_scale]), total])

    def report(self) -> None:
        """Reads the numbers of the pending step, if there is one, and logs it where it is due or was skipped."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        found = pending.numbers.tolist()
        numbers = dict(zip([*CONTROL, *self.reported], found, strict=False))
        rank_losses = found[len(numbers) :]
        loss_scale = numbers["loss_scale"] if self.train.precision == "fp16" else None
        loss_is_finite = all(math.isfinite(numbers[term]) for term in self.objective.terms)
        loss, parts, lacking = means(numbers, pending.totals.counts, self.objective.terms)
        if pending.measured is not None:
            self.record.tracker.log(self.layers.line(pending.step, pending.measured))
        note, diverged = self._judge(pending, loss, bool(numbers["finite"]), loss_is_finite, loss_scale)
        slow = self.slow_ranks.see(pending.totals.rank_seconds)
        for text in (note, slow, *self.targets.see(pending.step, pending.totals.counts)):
            if text is not None:
                self.record.tracker.note(text)
        if note is None and diverged is None and not self._is_logged(pending.step):
            return
        throughput, units = self.record.throughput, pending.totals.units
        line = TrainingLine(
            step=pending.step,
            loss=loss,
            grad_norm=numbers["grad_norm"],
            lr=pending.lr,
            samples=pending.samples,
            unit=throughput.unit,
            units=pending.units,
            step_seconds=pending.seconds,
            units_per_second=units / pending.seconds,
            batch_hash=pending.totals.batch_hash,
            utilization=throughput.utilization(units, pending.seconds),
            parts=parts,
            lacking=lacking,
            skipped=not numbers["finite"],
            loss_scale=loss_scale,
            spike=bool(numbers["finite"]) and note is not None,
            rank_seconds=pending.totals.rank_seconds,
            loss_max=max(rank_losses) if rank_losses else None,
            peak_bytes=pending.totals.peak_bytes,
            flops=throughput.flops(pending.units),
            data_seconds=pending.data_seconds,
            training_seconds=pending.training_seconds,
            drawn=pending.drawn,
        )
        self.record.tracker.log(line)
        if diverged is not None:
            raise diverged

    def _judge(
        self, pending: Pending, loss: float, finite: bool, loss_is_finite: bool, loss_scale: float | None
    ) -> tuple[str | None, Failure | None]:
        """-> (what to report of a step: that it was skipped, or that its loss is a spike, and which batch it had;
        what ends the run once the step is logged, where too many were skipped)."""
        try:
            note = self.watch.see(pending.step, finite, loss_is_finite, loss_scale)
        except Failure as diverged:
            batch = self.incidents.record("skipped", pending.step, pending.start, loss)
            return None, Failure(f"{diverged}; {batch}")
        if note is not None:
            if loss_scale is not None and loss_is_finite:  # fp16's search for a scale: no batch is to blame
                return note, None
            return f"{note}; {self.incidents.record('skipped', pending.step, pending.start, loss)}", None
        return self.incidents.see_loss(pending.step, loss, pending.start), None

    def evaluate(self) -> None:
        """Logs the mean loss over the validation split, or over its first train.eval_batches global batches; nothing
        where a stop is asked for meanwhile."""
        self.phases.enter("evaluate")
        found = evaluate(
            self.engine, self.objective, self.feeds, self.world, self.stop, self.phases, self.train.eval_batches
        )
        if found is None:  # the trainer meets the stop next, and the evaluation is made up for after a resume
            return
        small = self.split.see(found.batches)
        if small is not None:
            self.record.tracker.note(small)
        throughput = self.record.throughput
        reached = (self.feeds.samples(self.position), self.units, throughput.flops(self.units))
        line = EvaluationLine(
            self.step,
            found.loss,
            found.parts,
            found.lacking,
            throughput.unit,
            found.units,
            found.bits_per_byte,
            *reached,
        )
        self.record.tracker.log(line)
        self.evaluated_step = self.step
        if self.record.showing is not None and math.isfinite(found.loss):  # a model that diverged can show nothing
            self.phases.enter("evaluate")  # after the last batch's data
            self.record.showing.show(self.step)

    def save(self) -> None:
        """Begins to write a checkpoint of this step in the background. Raises Failure where its weights are not finite
        or not the same on all ranks that hold them, or where another job has taken over the folder.

        To be called after `report`, and not while steps are skipped that may mean divergence.
        """
        self.phases.enter("save")
        require_ownership(self.world, self.record.owner)
        require_equal_replicas(self.world, self.engine, self.train.deterministic, f"after step {self.step}")
        state = {
            "step": self.step,
            "tokens": self.units,
            "evaluated_step": self.evaluated_step,
            "position": self.position,
            "identity": self.record.identity,
            "course": course(self.config),
            "skipped": self.watch.to_json(),
            "losses": self.incidents.state(),
            "training_seconds": self.training_seconds,
        }
        self.keeper.begin(self.step, self.engine.tensors(), state, prune=self.watch.in_a_row == 0)

    def _is_logged(self, step: int) -> bool:
        return self.train.log_every > 0 and (step % self.train.log_every == 0 or step in (1, self.train.steps))

    def _is_evaluation_due(self) -> bool:
        return self.train.eval_every > 0 and self.step % self.train.eval_every == 0 and self.evaluated_step != self.step
