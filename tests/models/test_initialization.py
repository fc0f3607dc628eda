"""What fills a model, and when: the same bits on any number of threads, nothing on a resume, one tensor at a time under
ZeRO 3. That weights are equal at every tensor-parallel size is for the parity tests."""

from unittest import mock

import pytest
import torch

from pretraining.models import initialization
from pretraining.models.gpt import model as gpt
from pretraining.models.gpt.config import GPTConfig
from tests.building import build
from tests.helpers import TINY, metrics, run_world, train_alone, train_in_world


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_weights_do_not_depend_on_the_threads_that_draw(threads):
    drawn = []
    for number in (1, 4):
        threads(number)
        model = build(GPTConfig("gpt", 3, 64, 4, 32), 100)
        model.initialize(7)
        drawn.append(model.state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_what_is_drawn_in_place_is_what_is_drawn_apart():
    """A parameter that is not laid out row by row is filled from a whole tensor, as a part of one is."""
    models = [build(GPTConfig("gpt", 2, 64, 4, 32), 100) for _ in range(2)]
    for _, parameter in models[1].named_parameters():
        parameter.data = torch.empty(*reversed(parameter.shape)).permute(*reversed(range(parameter.ndim)))
    for model in models:
        model.initialize(7)
    one, two = (dict(model.named_parameters()) for model in models)
    assert not two["blocks.0.mlp.up.weight"].is_contiguous()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_fault_of_a_rule_is_raised():
    model = build(GPTConfig("gpt", 2, 64, 4, 32), 100)
    with pytest.raises(ZeroDivisionError):
        initialization.initialize(model, model.layers, 1, lambda *_: 1 / 0)


def test_a_resume_draws_nothing(corpus, tmp_path):
    run = [*TINY, f"data.path={corpus}", "train.steps=4", "train.checkpoint_every=2", "train.keep_last=9"]
    train_alone(*run, f"run_dir={tmp_path / 'whole'}")
    start = f"train.resume={tmp_path / 'whole' / 'checkpoints' / 'step_00000002'}"
    with mock.patch.object(gpt, "initialize", side_effect=AssertionError("drawn")):
        train_alone(*run, start, f"run_dir={tmp_path / 'resumed'}")
    whole, resumed = metrics(tmp_path / "whole"), metrics(tmp_path / "resumed")
    assert sorted(resumed) == [3, 4] and all(resumed[step]["loss"] == whole[step]["loss"] for step in resumed)


def one_at_a_time(world, corpus, folder):
    """-> how many parameters were drawn, and for each of them how many of those before it this rank had whole."""
    held = []
    original = initialization.initialize

    def watched(model, layers, seed, rule):
        parameters, drawn = dict(model.named_parameters()), []

        def watched_rule(name, tensor, generator):
            held.append(sum(parameters[other].numel() > 0 for other in drawn))
            drawn.append(name)
            rule(name, tensor, generator)

        original(model, layers, seed, watched_rule)
        assert all(parameter.numel() == 0 for parameter in parameters.values())

    zero_3 = ("engine=deepspeed", "engine.zero_stage=3")
    with mock.patch.object(gpt, "initialize", watched):
        train_in_world(world, *TINY, *zero_3, f"data.path={corpus}", f"run_dir={folder / 'zero'}", "train.steps=2")
    return held


def test_zero_3_never_holds_the_whole_model(corpus, tmp_path):
    for held in run_world(2, one_at_a_time, corpus, tmp_path):
        assert len(held) > 10 and set(held) == {0}
    train_alone(*TINY, f"data.path={corpus}", f"run_dir={tmp_path / 'one'}", "train.steps=2")
    one, zero = metrics(tmp_path / "one"), metrics(tmp_path / "zero")
    assert one[1]["loss"] == pytest.approx(zero[1]["loss"], abs=1e-5)
