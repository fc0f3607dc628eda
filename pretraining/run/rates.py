"""What a run says of its learning rate in its first lines."""

from __future__ import annotations

import dataclasses

from data_pipeline.common.registry import load
from pretraining.config import RunConfig
from pretraining.optim.registry import OPTIMIZERS


def rate_lines(config: RunConfig) -> list[str]:
    """The peak of the rate and the schedule, each with where it comes from."""
    return [_peak(config), _schedule(config)]


def _peak(config: RunConfig) -> str:
    optimizer, entry = config.optimizer, OPTIMIZERS[config.optimizer.name]
    fields = {field.name: field for field in dataclasses.fields(load(entry.config))}
    is_default = "lr" in fields and optimizer.lr == fields["lr"].default
    source = f"{optimizer.name}'s default" if is_default else "as optimizer.lr says"
    note = f" ({entry.rate})" if is_default and entry.rate else ""
    batch = config.train.global_batch_size
    return f"learning rate: {optimizer.lr:g} at its peak, {source}{note}; a global batch has {batch}"


def _schedule(config: RunConfig) -> str:
    scheduler, steps = config.scheduler, config.train.steps
    own = OPTIMIZERS[config.optimizer.name].schedule
    if own is None:
        source = ""
    elif own == scheduler.name:
        source = f", which comes with {config.optimizer.name}"
    else:
        source = f", chosen in place of {own}, which comes with {config.optimizer.name}"
    warmup = scheduler.warmup(steps)
    rise = f"rises over {warmup} of {steps} steps" if warmup else f"begins at its peak, {steps} steps"
    last = config.optimizer.lr * scheduler.ratio(steps, steps)
    return f"schedule: {scheduler.name}{source}; {rise}, ends at {last:.3g}"
