"""Folders of runs as training leaves them, without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;"


def write_run(
    folder: Path,
    steps: int = 300,
    lr: float = 1e-3,
    exit_code: int | None = 0,
    restarted: int | None = None,
    objective: str = "causal_lm",
    spike: int | None = None,
    every: int = 1,
) -> Path:
    """restarted: the step from which a second start went on, ten steps behind the first's last."""
    folder.mkdir(parents=True)
    config = {
        "run_dir": str(folder),
        "objective": {"name": objective},
        "optimizer": {"lr": lr},
        "train": {"steps": 300},
        "tracking": {"tags": [HOSTILE]},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    starts: list[dict[str, Any]] = [start(0, 0)]
    if restarted is not None:
        starts.append(start(restarted, restarted + 10, seconds=restarted * 0.2))
    (folder / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in starts))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(0, steps + 1, every):
            for line in lines(step, lr, spike):
                file.write(json.dumps(line) + "\n")
    if exit_code is not None:
        (folder / "verdict.json").write_text(json.dumps({"exit_code": exit_code, "reason": "as it is"}))
    samples = folder / "samples" / f"step_{steps:08d}"
    samples.mkdir(parents=True)
    (samples / "samples.txt").write_text(f"def sample():\n    return '{HOSTILE}'\n")
    return folder


def start(step: int, reached: int, seconds: float = 0.0) -> dict[str, Any]:
    kinds = {"kind": "start", "time": 1.8e9, "seconds": seconds, "exit_code": None, "code": "0123456789abcdef"}
    return {**kinds, "step": step, "reached": reached, "hosts": ["node1", "node2"], "ranks": 4, "job": "77"}


def lines(step: int, lr: float, spike: int | None) -> list[dict[str, Any]]:
    found = []
    if step:
        found.append(
            {
                "step": step,
                "loss": 50.0 if step == spike else 3 + 3 * math.exp(-step * lr * 20) + 0.1 * math.sin(step * 7),
                "grad_norm": 1.0,
                "lr": lr,
                "tokens": step * 1000,
                "step_seconds": 0.1,
                "tokens_per_second": 10000.0,
                "batch_hash": "18446744073709551615",
                "tflops": 1.5,
                "time": step * 0.2,
            }
        )
    if step % 100 == 0:
        found.append({"step": step, "valid_loss": 3 + 3 * math.exp(-step * lr * 20), "time": step * 0.2 + 0.01})
    return found
