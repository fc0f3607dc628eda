"""train.dropout_until: from its step on a run is one without dropout, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from pretraining.dropout import dropout_ends
from tests.helpers import TINY, finished_weights, metrics, train_alone


def test_only_the_steps_after_it_drop_nothing():
    x = torch.ones(1, 2, 64, 8)
    for step, until, drops in ((90, 0.9, True), (91, 0.9, False), (100, 1.0, True), (1, 0.0, False)):
        with dropout_ends(step, 100, until):
            assert (F.dropout(x, 0.5) == 0).any() == (torch.nn.Dropout(0.5)(x) == 0).any() == drops
            attended = (F.scaled_dot_product_attention(x, x, x, None, p) for p in (0.5, 0.0))
            assert torch.equal(*attended) != drops
            assert torch.equal(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), x) != drops


def test_a_run_whose_dropout_has_ended_is_one_without(corpus, tmp_path):
    """And half a run resumes as itself."""
    run = (*TINY, "model=bart_debug", "model.intermediate_size=64", "objective=denoising", f"data.path={corpus}")
    run = (*run, "train.steps=3", "scheduler=constant")
    dropping = ("model.dropout=0.2", "train.checkpoint_every=1", "train.keep_last=9")
    train_alone(*run, f"run_dir={tmp_path}/without")
    train_alone(*run, *dropping, "train.dropout_until=0.0", f"run_dir={tmp_path}/ended")
    without, ended = finished_weights(tmp_path / "without"), finished_weights(tmp_path / "ended")
    assert all(torch.equal(tensor, without[name]) for name, tensor in ended.items())
    train_alone(*run, *dropping, "train.dropout_until=0.34", f"run_dir={tmp_path}/part")
    assert metrics(tmp_path / "part")[1]["loss"] != metrics(tmp_path / "without")[1]["loss"]
    resume = f"train.resume={tmp_path}/part/checkpoints/step_00000001"
    train_alone(*run, *dropping, "train.dropout_until=0.34", resume, f"run_dir={tmp_path}/resumed")
    expected = finished_weights(tmp_path / "part")
    assert all(torch.equal(t, expected[name]) for name, t in finished_weights(tmp_path / "resumed").items())


def test_checkpointed_activations_are_refused(corpus):
    with pytest.raises(InputError, match=r"dropout_until=0.9: with model.activation_checkpointing=true it is not"):
        load_config([f"data.path={corpus}", "train.dropout_until=0.9", "model.activation_checkpointing=true"])
