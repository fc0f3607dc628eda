"""`make gpu-check`: parity on one CUDA device. Each optimizer and family, torch and deepspeed engines, fp32 against the
CPU and bf16 against the torch engine; says so and ends where there is no such device."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.distributed.parity import FAMILIES, OPTIMIZERS, overrides, prepare_data
from tests.helpers import metrics, pretrain_process

ENGINES = {
    "torch": ["engine=torch"],
    **{f"ZeRO-{stage}": ["engine=deepspeed", f"engine.zero_stage={stage}"] for stage in (1, 2, 3)},
}
BOUNDS = {"fp32": 1e-4, "bf16": 2e-2}  # of the loss: other kernels, other orders of sums


def train(data: Path, folder: Path, optimizer: str, family: str, engine: str, precision: str, **env: str) -> Path:
    run_dir = folder / f"{optimizer}-{family}-{engine}-{precision}-{len(env)}"
    *common, _ = overrides(data, folder, (optimizer, family, "one"))
    done = pretrain_process(*common, *ENGINES[engine], f"train.precision={precision}", f"run_dir={run_dir}", **env)
    assert done.returncode == 0, done.stderr
    return run_dir


def difference(one: Path, other: Path) -> float:
    expected, found = metrics(one), metrics(other)
    return max(abs(found[step]["loss"] - expected[step]["loss"]) for step in expected)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check skipped: no CUDA device; nothing was checked")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        data = prepare_data(Path(name))
        for optimizer, family in itertools.product(OPTIMIZERS, FAMILIES):
            reference = {
                "fp32": train(data, Path(name), optimizer, family, "torch", "fp32", CUDA_VISIBLE_DEVICES=""),
                "bf16": train(data, Path(name), optimizer, family, "torch", "bf16"),
            }
            for engine, precision in itertools.product(ENGINES, BOUNDS):
                found = difference(reference[precision], train(data, Path(name), optimizer, family, engine, precision))
                failed += found > BOUNDS[precision]
                print(
                    f"{optimizer} {family} {engine} {precision}: largest difference of the loss {found:.1e}"
                    f"{'' if found <= BOUNDS[precision] else ' FAILS'}",
                    flush=True,
                )
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
