"""`make bench-start-up`: what it takes until a model is there to be trained: CPU seconds and peak memory of a rank, for
a new run, for a resumed one (without reading the checkpoint), and under ZeRO-3 on two ranks.

    python -m benchmarks.start_up [MODEL [MODEL_UNDER_ZERO_3]]
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from pretraining.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import nn

    from pretraining.models.base import TokenModel
    from pretraining.objectives.base import Objective
    from pretraining.parallel.layers import Layers

VOCABULARY = Vocabulary(50257)
LARGEST_SECONDS = {"new": 10.0, "resumed": 2.0}  # of gpt2_xl


class Started(NamedTuple):
    """seconds: of CPU time. bytes: at the peak, beyond what was there before. The engine is built after the fill."""

    parameter_bytes: int
    fill_seconds: float
    fill_bytes: int
    engine_bytes: int


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "gpt2_xl"
    dealt = sys.argv[2] if len(sys.argv) > 2 else "gpt2_medium"
    slow = []
    for name, bound in LARGEST_SECONDS.items():
        (found,) = run(1, model, name == "resumed", ())
        print(f"{model}, one rank, {name}: {told(found)}", flush=True)
        if model == "gpt2_xl" and found.fill_seconds > bound:
            slow.append(f"{name}: {found.fill_seconds:.1f} s of CPU time, more than {bound:.0f}")
    for name in LARGEST_SECONDS:
        engine = ("engine=deepspeed", "engine.zero_stage=3")
        for rank, found in enumerate(run(2, dealt, name == "resumed", engine)):
            print(f"{dealt}, ZeRO-3, rank {rank} of 2, {name}: {told(found)}", flush=True)
    if slow:
        sys.exit("; ".join(slow))


def told(found: Started) -> str:
    return (
        f"{found.fill_seconds:.2f} s of CPU time, peak {found.fill_bytes / 2**20:,.0f} MiB, with the engine "
        f"{found.engine_bytes / 2**20:,.0f} MiB; the whole model has {found.parameter_bytes / 2**20:,.0f} MiB"
    )


def run(ranks: int, model: str, resumed: bool, overrides: tuple[str, ...]) -> list[Started]:
    """In processes of their own."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[tuple[int, Started]] = context.Queue()
    processes = [
        context.Process(target=start, args=(rank, ranks, model, resumed, overrides, queue)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=600) for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(ranks)]


def start(
    rank: int, ranks: int, name: str, resumed: bool, overrides: tuple[str, ...], queue: Queue[tuple[int, Started]]
) -> None:
    """One rank: as pretraining.build has it, without data."""
    places = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": 29_531}
    if ranks > 1:
        os.environ.update({key: str(value) for key, value in places.items()}, MASTER_ADDR="127.0.0.1")
    from pretraining.config import load_config
    from pretraining.engines.base import LossModule
    from pretraining.engines.build import build_engine, make_layers
    from pretraining.models.heads import attach_heads
    from pretraining.models.registry import build_model
    from pretraining.optim.registry import build_update_rule
    from pretraining.parallel.launch import read_launch
    from pretraining.parallel.meeting import meet
    from pretraining.parallel.world import start_world, stop_world

    config = load_config([f"model={name}", "data.path=none", *overrides], ranks)
    launch = read_launch()
    world = start_world(launch, meeting=meet(launch) if ranks > 1 else None)
    layers, objective = make_layers(config.engine, world.mesh), WithHead()
    before, began, seconds = peak_bytes(), time.process_time(), [0.0, 0.0]
    model = attach_heads(build_model(config.model, VOCABULARY, layers), objective, layers)
    built = time.process_time() - began
    parameter_bytes = sum(p.nbytes for p in model.parameters())
    module = LossModule(model, cast("Objective", objective), "fp32")

    def fill() -> None:
        began = time.process_time()
        if not resumed:
            model.initialize(1)
        seconds[0] = built + time.process_time() - began
        seconds[1] = peak_bytes() - before

    if ranks == 1:  # gpt2_xl's averages would not fit into a laptop's memory
        fill()
    else:
        build_engine(config.engine, module, build_update_rule(config.optimizer), config.train, world, fill)
    queue.put((rank, Started(parameter_bytes, seconds[0], int(seconds[1]), peak_bytes() - before)))
    world.gather_texts(None)  # each until all are done
    stop_world()


class WithHead:
    """As much of an objective as a model needs."""

    def heads(self, model: object, layers: Layers) -> Mapping[str, nn.Module]:
        return {"head": cast("TokenModel", model).make_token_head(layers)}


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
