"""What the trainer promises: the loss does not depend on how a global batch is cut."""

import itertools
import re

import pytest

from data_pipeline.common.errors import Failure
from pretraining.randomness import dropout_seed
from pretraining.run.faults import NonFiniteWatch
from tests.helpers import TINY, metrics, train_alone, valid_losses


def run(corpus, folder, *more):
    train_alone(*TINY, f"data.path={corpus}", f"run_dir={folder}", "train.steps=4", "train.eval_every=2", *more)
    return metrics(folder), valid_losses(folder)


def test_micro_batch_and_workers_change_nothing(corpus, tmp_path):
    lines, valid = run(corpus, tmp_path / "a")
    for number, change in enumerate(
        (["train.micro_batch_size=8"], ["train.micro_batch_size=1"], ["data.num_workers=2"])
    ):
        other, other_valid = run(corpus, tmp_path / str(number), *change)
        for step in lines:
            assert other[step]["batch_hash"] == lines[step]["batch_hash"]
            assert abs(other[step]["loss"] - lines[step]["loss"]) < 2e-6
        assert all(abs(other_valid[s] - valid[s]) < 2e-6 for s in valid)


def test_another_seed_is_another_run(corpus, tmp_path):
    one, two = run(corpus, tmp_path / "a")[0], run(corpus, tmp_path / "b", "train.seed=2")[0]
    assert one[1]["batch_hash"] != two[1]["batch_hash"] and one[1]["loss"] != two[1]["loss"]


def test_dropout_is_drawn_anew_each_step_and_repeats_for_a_seed(corpus, tmp_path):
    runs = [run(corpus, tmp_path / str(i), f"model.dropout={p}")[0] for i, p in enumerate((0.0, 0.3, 0.3))]
    assert runs[1][1]["loss"] == runs[2][1]["loss"] != runs[0][1]["loss"]


def test_learning_makes_the_loss_fall(corpus, tmp_path):
    train_alone(
        *TINY,
        f"data.path={corpus}",
        f"run_dir={tmp_path / 'r'}",
        "train.steps=120",
        "optimizer.lr=1e-2",
        "train.eval_every=120",
    )
    first, last = valid_losses(tmp_path / "r").values()
    assert last < 0.85 * first


@pytest.mark.parametrize(
    ("loss_is_finite", "loss_scale", "told"),
    [
        (True, 32768.0, "overflowed fp16; this is expected at the start and now and then later, .* to 32768$"),
        (True, 1.0, "overflowed fp16 at the smallest loss scale, 1; .* train.precision=bf16$"),
        (False, 32768.0, "its loss was not finite, which no loss scale mends; .*bf16"),
        (True, None, "its gradients were not finite; .*optimizer.lr"),
        (False, None, "its loss was not finite; .*optimizer.lr"),
    ],
)
def test_advice_fits_why_a_step_was_skipped(loss_is_finite, loss_scale, told):
    note = NonFiniteWatch().see(7, False, loss_is_finite, loss_scale)
    assert note.startswith("step 7 was skipped: ") and re.search(told, note)
    assert NonFiniteWatch().see(7, True, True, loss_scale) is None


@pytest.mark.parametrize("loss_scale", [None, 2.0])
def test_divergence_ends_the_run(loss_scale):
    watch = NonFiniteWatch()
    for step in range(NonFiniteWatch.LIMIT - 1):
        watch.see(step, False, True, loss_scale)
    with pytest.raises(Failure, match="diverged"):
        watch.see(99, False, True, loss_scale)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "lamb"])
def test_a_first_step_that_overflows_fp16_does_no_harm(digits, tmp_path, capsys, optimizer):
    """fp16's first losses are scaled by 2^16, which is expected to overflow."""
    train_alone(
        "model=vit_tiny",
        "model.image_size=64",
        "model.num_layers=2",
        "objective=image_classification",
        f"data.path={digits}",
        f"run_dir={tmp_path / 'r'}",
        "data.num_workers=0",
        "train.precision=fp16",
        f"optimizer={optimizer}",
        "scheduler=constant",
        "train.global_batch_size=2",
        "train.micro_batch_size=2",
        "train.steps=6",
        "train.eval_every=6",
        "train.log_every=100",
        "tracking.wandb=disabled",
    )
    lines = metrics(tmp_path / "r")
    skipped = [step for step, line in lines.items() if line.get("skipped")]
    assert skipped and skipped[0] == 1 and lines[1]["grad_norm"] is None
    told = capsys.readouterr().err
    assert all(f"step {step} was skipped: its gradients overflowed fp16" in told for step in skipped)
    assert None not in valid_losses(tmp_path / "r").values() and lines[6]["loss"] is not None


def test_dropout_seeds_differ_by_seed_step_micro_batch_and_data_parallel_rank_alone():
    cases = list(itertools.product((1, 2), (1, 2), (0, 1), (0, 1)))
    found = [dropout_seed(*case) for case in cases]
    assert len(set(found)) == len(cases)
    assert [dropout_seed(*case) for case in cases] == found
