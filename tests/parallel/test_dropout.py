"""Dropout under tensor parallelism: the same bits where activations are replicated, different ones where split."""

from pathlib import Path

import pytest
import torch

from tests.distributed.parity import FAMILIES, overrides, prepare_data
from tests.helpers import run_world

RATES = {
    "gpt": ["model.dropout=0.2"],
    "bert": ["model.dropout=0.2"],
    "t5": ["model.dropout=0.2"],
    "vit": ["model.dropout=0.2", "model.drop_path=0.3"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_data(tmp_path_factory.mktemp("data"))


def draw(world, sequence_parallel):
    """-> kept elements of a replicated activation, of one in the sequence region, of those split by features: as
    layers give them, within attention, within the feed-forward."""
    from pretraining.models.attention import Attention
    from pretraining.models.layers import Dropout, FeedForward
    from pretraining.parallel.megatron import MegatronLayers

    layers, ones = MegatronLayers(world.mesh, sequence_parallel), torch.ones(4, 8, 64)
    torch.manual_seed(7)
    replicated = torch.nn.functional.dropout(ones, 0.5)
    between = Dropout(layers, 0.5)(layers.scatter_to_sequence_region(ones))
    with layers.model_parallel_rng():
        by_features = torch.nn.functional.dropout(ones, 0.5)
    attention = Attention(layers, 64, 4, dropout=0.5)
    heads = entering(attention, attention.output, layers.scatter_to_sequence_region(ones))
    mlp = FeedForward(layers, 64, 128, "relu", dropout=0.5)
    middle = entering(mlp, mlp.down, layers.scatter_to_sequence_region(ones))
    return replicated, between, by_features, heads, middle, torch.nn.functional.dropout(ones, 0.5)


def entering(block, last, x):
    """What `last`, a layer of `block`, is given where all weights are the same: it differs by the masks alone."""
    seen = []
    for parameter in block.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    block(x)
    return seen[0]


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_masks(sequence_parallel):
    one, other = run_world(2, draw, sequence_parallel, tensor_parallel=2)
    same = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
    assert same == [True, not sequence_parallel, False, False, False, True]  # the last: generators go on in step
    for a, b in zip(one, other, strict=True):
        equal = float(((a == 0) == (b == 0)).float().mean())
        assert equal == 1.0 or abs(equal - 0.5) < 0.05  # independent, not shifted copies


def train(world, runs):
    """-> for each run, the parameters after it that every tensor-parallel rank holds whole."""
    from pretraining.build import build, read_inputs
    from pretraining.config import load_config
    from pretraining.run.signals import StopRequest

    weights = {}
    for number, run in enumerate(runs):
        config = load_config(run, world.size)
        trainer = build(config, read_inputs(config), world, Path(config.run_dir), StopRequest())
        trainer.fit()
        weights |= {
            f"{number} {name}": p.detach()
            for name, p in trainer.engine.module.named_parameters()
            if not getattr(p, "tensor_model_parallel", False)
        }
    return weights


@pytest.mark.parametrize("layout", ["TP2", "TP2 + SP"])
def test_replicated_weights_stay_the_same_bits(layout, data, tmp_path):
    """Nothing but sequence parallelism reduces their gradients over the tensor-parallel ranks: masks that differ where
    activations are replicated would drive them apart."""
    runs = [
        [*overrides(data, tmp_path, ("adamw", family, layout)), *RATES[family], "train.steps=3"] for family in FAMILIES
    ]
    one, other = run_world(2, train, runs, tensor_parallel=2)
    assert len(one) > 40
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
