"""Runs of the adapter: a resume with dropout, the export, and a start from what was exported."""

from pathlib import Path

import pytest
import torch

from tests.helpers import command, finished_weights, metrics, train_alone, valid_losses

TINY = (
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.intermediate_size=48",
    "model.max_seq_len=32",
    "model.dropout=0.1",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.eval_every=100",
    "train.checkpoint_every=0",
    "train.steps=4",
    "scheduler=constant",
    "tracking.wandb=disabled",
    "data.num_workers=0",
)
RUNS = {
    "roberta": ("model=hf_debug", "objective=masked_lm", "objective.pairing=none"),
    "bart": ("model=hf_debug", "model.architecture=BartForConditionalGeneration", "objective=span_corruption"),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, corpus, tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [*RUNS[request.param], *TINY, f"data.path={corpus}"]
    train_alone(*overrides, f"run_dir={folder / 'run'}")
    assert command("pretraining.export", f"checkpoint={folder / 'run'}", f"output={folder / 'exported'}") == 0
    return folder, overrides


def test_resumes_bit_for_bit_with_dropout(run):
    folder, overrides = run
    train_alone(*overrides, f"run_dir={folder / 'resumed'}", "train.steps=2")
    train_alone(*overrides, f"run_dir={folder / 'resumed'}")
    whole, resumed = metrics(folder / "run"), metrics(folder / "resumed")
    assert [line["loss"] for line in whole.values()] == [line["loss"] for line in resumed.values()]
    expected = finished_weights(folder / "run")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in finished_weights(folder / "resumed").items())


def test_starts_from_what_was_exported(run):
    """The first evaluation of the new run is the last one of the old."""
    folder, overrides = run
    init_from = f"model.init_from={folder / 'exported'}"
    train_alone(*overrides, f"run_dir={folder / 'again'}", init_from, "train.steps=1")
    last, first = list(valid_losses(folder / "run").values())[-1], valid_losses(folder / "again")[0]
    assert first == pytest.approx(last, abs=1e-6) and first < valid_losses(folder / "run")[0] - 1e-3
