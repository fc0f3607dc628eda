"""A run of one of transformers' architectures: stopped and resumed with dropout, exported, and started from the export.

`make parity` does it for every architecture of the table; `make test` for a few.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from pretraining.models.huggingface.architectures import KNOWN
from tests.distributed.adapter import ARCHITECTURES, overrides, prepare_data
from tests.helpers import command, finished_weights, metrics, train_alone, valid_losses

RUN = ["train.steps=4", "train.eval_every=100", "scheduler=constant", "optimizer.lr=1e-3"]


def run_and_export(data: Path, folder: Path, architecture: str) -> list[str]:
    """Into folder/run and folder/exported -> the overrides of the run, but for its folder."""
    case = ("adamw", architecture, "one")
    chosen = [o for o in overrides(data, folder, case) if not o.startswith(("run_dir=", "scheduler.", "train.steps="))]
    dropout = 0.0 if KNOWN[architecture].own_seeds else 0.1
    chosen = [*chosen, *RUN, *([] if "Image" in architecture else [f"model.dropout={dropout}"])]
    train_alone(*chosen, f"run_dir={folder / 'run'}")
    assert command("pretraining.export", f"checkpoint={folder / 'run'}", f"output={folder / 'exported'}") == 0
    return chosen


def resume_differences(folder: Path, chosen: list[str]) -> list[str]:
    """In which steps and tensors a run that was stopped after two steps differs from folder/run."""
    train_alone(*chosen, f"run_dir={folder / 'resumed'}", "train.steps=2")
    train_alone(*chosen, f"run_dir={folder / 'resumed'}")
    whole, resumed = metrics(folder / "run"), metrics(folder / "resumed")
    expected = finished_weights(folder / "run")
    tensors = finished_weights(folder / "resumed")
    found = [f"step {step}" for step in whole if whole[step]["loss"] != resumed[step]["loss"]]
    return found + [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])]


def start_difference(folder: Path, chosen: list[str]) -> float:
    """Between the last evaluation of folder/run and the first of a run that starts from folder/exported."""
    init_from = f"model.init_from={folder / 'exported'}"
    train_alone(*chosen, f"run_dir={folder / 'again'}", init_from, "train.steps=1")
    before, after = valid_losses(folder / "run"), valid_losses(folder / "again")[0]
    assert abs(before[0] - before[4]) > 1e-3, "nothing was learned that could be taken over"
    return abs(before[4] - after)


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        data = prepare_data(Path(place))
        for architecture in sys.argv[1:] or ARCHITECTURES:
            folder = Path(place, architecture)
            chosen = run_and_export(data, folder, architecture)
            found, difference = resume_differences(folder, chosen), start_difference(folder, chosen)
            failed += bool(found) or difference > 1e-5
            print(
                f"{architecture:32} resumed: {'; '.join(found[:4]) or 'bit for bit'}; exported and read back: "
                f"{difference:.1e} of the validation loss",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
