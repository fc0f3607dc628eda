"""Saving and loading a model of 100M parameters with AdamW's state: `python -m benchmarks.checkpoint`.

Held up is what training waits for: the copy of the tensors on the host.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from pretraining.parallel.fragments import Fragment
from pretraining.parallel.launch import Launch
from pretraining.parallel.world import start_world
from pretraining.run.checkpoint import Saver
from pretraining.run.checkpoint_format import open_checkpoint
from pretraining.run.checkpoint_reader import load_tensors

ROUNDS = 5
SHAPES = {f"{kind}.{i}": (3072, 1024) for kind in ("weights", "exp_avg", "exp_avg_sq") for i in range(32)}


def main() -> None:
    tensors = [(Fragment.whole(name, shape), torch.randn(shape)) for name, shape in SHAPES.items()]
    times: dict[str, list[float]] = {"held up": [], "save": [], "load": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            target, saver, began = Path(folder) / str(number), Saver(start_world(Launch())), time.perf_counter()
            saver.save(tensors, {"step": 1}, target)
            times["held up"].append(time.perf_counter() - began)
            saver.wait()
            times["save"].append(time.perf_counter() - began)
            began = time.perf_counter()
            load_tensors(open_checkpoint(target), tensors)
            times["load"].append(time.perf_counter() - began)
    size = sum(tensor.nbytes for _, tensor in tensors) / 1e9
    for name, seconds in times.items():
        print(
            f"{name}: median {statistics.median(seconds):.2f} s, min {min(seconds):.2f}, max {max(seconds):.2f} "
            f"({size:.2f} GB, {ROUNDS} rounds)"
        )


if __name__ == "__main__":
    main()
