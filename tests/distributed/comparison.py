"""Runs held against one process, and the pages of docs/ that say how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tests.helpers import ROOT, finished_weights, metrics

LOSS_BOUND, WEIGHT_BOUND = 1e-5, 1e-4
STEPS, HEADS = 20, 4
# softmax does not change when all scores of a query do: the exact gradient of the keys' bias is zero
KEY_BIASES = ("key.bias", "k_proj.bias", "k_lin.bias")
FUSED_BIASES = {  # hold the keys' bias among their rows
    "attention.qkv.bias": (HEADS, 3, -1),  # [head, (q, k, v), head_dim]
    "attn.c_attn.bias": (1, 3, -1),  # [(q, k, v), hidden]
}
Case = tuple[str, str, str]  # optimizer, family or architecture, layout
Overrides = Callable[[Path, Path, Case], list[str]]


class Difference(NamedTuple):
    """The largest over all steps and tensors: of the loss, absolute; of a tensor, relative to its norm."""

    loss: float
    weight: float
    tensor: str

    @property
    def holds(self) -> bool:
        return self.loss <= LOSS_BOUND and self.weight <= WEIGHT_BOUND

    def __str__(self) -> str:
        return f"{self.loss:.1e} / {self.weight:.1e}"


def difference(overrides: Overrides, data: Path, folder: Path, case: Case) -> Difference:
    """Between a case and one process, which have both run. overrides: the last one names the run's folder."""
    one, other = (Path(overrides(data, folder, c)[-1].removeprefix("run_dir=")) for c in ((*case[:2], "one"), case))
    expected, found = metrics(one), metrics(other)
    assert [line["batch_hash"] for line in expected.values()] == [line["batch_hash"] for line in found.values()]
    assert len(found) == STEPS
    loss = max(abs(found[step]["loss"] - expected[step]["loss"]) for step in expected)
    worst = max(_tensor_differences(finished_weights(one), finished_weights(other)))
    return Difference(loss, *worst)


def _tensor_differences(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[tuple[float, str]]:
    differences = []
    for name, a in expected.items():
        if not name.startswith("weights.") or name.endswith(KEY_BIASES):
            continue
        b = found[name]
        for shape in (shape for fused, shape in FUSED_BIASES.items() if name.endswith(fused)):
            a, b = (t.unflatten(0, shape)[:, ::2] for t in (a, b))
        differences.append((float((a - b).norm() / a.norm().clamp(min=1e-12)), name.removeprefix("weights.")))
    return differences


def page(title: str, introduction: str, remarks: str, results: Mapping[Case, Difference], seconds: float) -> str:
    """The head of a page, up to its tables. remarks: go on where the sentence on the cells ends."""
    return (
        f"# {title}\n\n{introduction}\n\n`make parity`: {len(results)} runs against one process, {seconds / 60:.0f} "
        f"minutes on two CPU cores, torch {torch.__version__.split('+')[0]}, gloo. Each cell: largest difference of "
        f"the loss at any step (bound {LOSS_BOUND:.0e}) / of any parameter tensor at step {STEPS}, relative to its "
        f"norm (bound {WEIGHT_BOUND:.0e}).{remarks}\n"
    )


def table(optimizer: str, columns: Sequence[str], rows: Mapping[str, Sequence[Difference | None]], missing: str) -> str:
    """A section of a page. columns: the heads of the columns, that of the rows' names first. rows: name -> cells.
    missing: what stands for a case that was not run."""
    lines = [f"\n## {optimizer}\n", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name, cells in rows.items():
        shown = [missing if d is None else f"{d}{'' if d.holds else ' **FAILS**'}" for d in cells]
        lines.append(f"| {' | '.join([name, *shown])} |")
    return "\n".join(lines) + "\n"


def finish(text: str, results: Mapping[Case, Difference], name: str) -> int:
    """Prints a page, writes it into docs/, names what fails -> the exit code."""
    print(text)
    for case, d in results.items():
        if not d.holds:
            print(f"{case}: loss {d.loss:.1e}, {d.tensor} {d.weight:.1e}")
    (ROOT / "docs" / name).write_text(text)
    return 0 if all(d.holds for d in results.values()) else 1
