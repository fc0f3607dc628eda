"""XLNet against transformers' XLNetLMHeadModel, with and without memory, and what its two streams may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.tokenizers.export import tokenizer_config
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import load_config
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.shapes import shapes_of
from pretraining.models.vocabulary import Vocabulary
from pretraining.models.xlnet import huggingface
from pretraining.models.xlnet.config import XLNetConfig
from pretraining.models.xlnet.model import in_order
from pretraining.objectives.sequence.permutation import order_of, places_and_ranks
from pretraining.parallel.layers import Layers, PlainLayers

WORDS, REUSE, LENGTH = 200, 10, 26
CONFIG = XLNetConfig("xlnet", 3, 32, 4, 64, 14, intermediate_size=48)  # a memory of one part and a half


class TokenHeads:
    def heads(self, model: Any, layers: Layers) -> dict[str, Any]:
        return {"head": model.make_token_head(layers)}


def build(config: XLNetConfig = CONFIG) -> Any:
    layers = PlainLayers()
    model: Any = attach_heads(build_model(config, Vocabulary(WORDS), layers), TokenHeads(), layers)
    model.initialize(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if parameter.shape[0] == 256:
                parameter[WORDS:] = 0.0
    return model


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """(ours, theirs) of the same weights."""
    ours = build()
    values = huggingface.huggingface_config(ours, {"eos": 2})
    theirs: Any = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**{**values, "reuse_len": REUSE}))
    state, parameters = theirs.state_dict(), dict(ours.named_parameters())
    maps = huggingface.weight_map(ours)
    assert sorted(entry.ours for entry in maps) == sorted(parameters)
    with torch.no_grad():
        for entry in maps:
            state[entry.theirs].copy_(entry.export(parameters[entry.ours]))
            assert torch.equal(entry.restore(state[entry.theirs]), parameters[entry.ours])
    return ours, theirs.eval()


def batch(warm: int, rows: int = 3) -> dict[str, Tensor]:
    """Random text whose parts are ordered as the objective orders them; a [cls] at the end."""
    rng = np.random.default_rng(warm)
    samples = []
    for _ in range(rows):
        parts = [REUSE] * (warm + 1) + [LENGTH - REUSE]
        tokens = rng.integers(5, WORDS, sum(parts))
        places, ranks, targets = [], [], []
        for number, size in enumerate(parts):
            chosen = np.zeros(size, bool)
            chosen[rng.choice(size - 1, 3, replace=False)] = True
            functional = np.arange(size) == (size - 1 if number == warm + 1 else -1)
            made = places_and_ranks(order_of(size, size, rng), chosen, functional)
            places.append(made[0])
            ranks.append(made[1])
            targets.append(made[2])
        segments = np.repeat([0, 1, 2], [sum(parts) - 9, 8, 1])
        arrays = (tokens, segments, np.concatenate(places), np.concatenate(ranks))
        samples.append((*arrays, np.concatenate([targets[-2], targets[-1] + REUSE])))
    names = ("tokens", "segments", "places", "ranks", "targets")
    return {
        name: torch.from_numpy(np.stack(arrays)) for name, arrays in zip(names, zip(*samples, strict=True), strict=True)
    }


def run_theirs(theirs: Any, given: dict[str, Tensor], warm: int) -> Tensor:
    """Their logits, with the memory that their model made of the warm parts: of content alone, as training makes it."""
    mems = None
    for start in range(0, warm * REUSE, REUSE):
        part = slice(start, start + REUSE)
        blocked = ~in_order(given["places"][:, part], given["ranks"][:, part])
        nothing = torch.nn.functional.one_hot(torch.zeros(len(blocked), 1, dtype=torch.long), REUSE).float()
        arguments = {"token_type_ids": given["segments"][:, part], "perm_mask": blocked.float(), "mems": mems}
        with torch.no_grad():
            mems = theirs(given["tokens"][:, part], target_mapping=nothing, use_mems=True, **arguments).mems
    own = slice(warm * REUSE, None)
    blocked = ~in_order(given["places"][:, own], given["ranks"][:, own], REUSE)
    mapping = torch.nn.functional.one_hot(given["targets"], LENGTH).float()
    arguments = {"token_type_ids": given["segments"][:, own], "perm_mask": blocked.float(), "target_mapping": mapping}
    return theirs(given["tokens"][:, own], mems=mems, use_mems=True, **arguments).logits


def run_ours(ours: Any, given: dict[str, Tensor], warm: int) -> Tensor:
    return ours.head.logits(ours(*given.values(), REUSE, warm))


@pytest.mark.parametrize("warm", [0, 1, 2])
def test_logits_and_gradients_equal_transformers(pair: tuple[Any, Any], warm: int) -> None:
    ours, theirs = pair
    given = batch(warm)
    found, expected = run_ours(ours, given, warm), run_theirs(theirs, given, warm)
    assert found.shape == expected.shape and (found - expected).abs().max() < 2e-5 * expected.abs().max()
    weights = torch.randn_like(expected)
    for model, logits in ((ours, found), (theirs, expected)):
        model.zero_grad()
        (logits * weights).sum().backward()
    theirs_by_name = dict(theirs.named_parameters())
    for entry in huggingface.weight_map(ours):
        gradient = ours.get_parameter(entry.ours).grad
        reference = entry.restore(theirs_by_name[entry.theirs].grad)
        assert (gradient - reference).norm() < 1e-4 * reference.norm(), entry.ours
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ours.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_target_sees_what_its_order_allows_and_no_more(checkpointing: bool) -> None:
    """Gradients of each target's features by each token's embedding: 0 where it may not see, and nowhere else."""
    config = XLNetConfig("xlnet", 3, 32, 4, 64, 14, intermediate_size=48, activation_checkpointing=checkpointing)
    model, given = build(config).train(), batch(0, rows=1)
    embedded: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    hidden = model(*given.values(), REUSE, 0)
    allowed = in_order(given["places"], given["ranks"], REUSE)[0]
    for number, place in enumerate(given["targets"][0].tolist()):
        (gradient,) = torch.autograd.grad(hidden[0, number].sum(), embedded[0], retain_graph=True)
        reached = gradient[0].abs().amax(-1)
        assert (reached[~allowed[place]] == 0).all() and (reached[allowed[place]] > 0).all()
        assert not allowed[place, place]


def test_memory_reaches_the_targets_and_has_no_gradient() -> None:
    model, given = build().eval(), batch(2)
    other = {**given, "tokens": given["tokens"].clone()}
    other["tokens"][:, 1] = 3
    assert (run_ours(model, given, 2) - run_ours(model, other, 2)).abs().max() > 1e-5
    alone = {name: t if name == "targets" else t[:, 2 * REUSE :] for name, t in given.items()}
    assert (run_ours(model, given, 2) - run_ours(model, alone, 0)).abs().max() > 1e-3


@pytest.mark.parametrize(("preset", "parameters"), [("xlnet_base", 116_750_336), ("xlnet_large", 360_300_800)])
def test_parameter_counts_are_the_published_ones(preset: str, parameters: int) -> None:
    """The paper's 110M and 340M leave out projections of distances; these are the published folders', 32,000 pieces."""
    config = load_config([f"model={preset}", "objective=permutation_lm", "data.path=x"]).model
    ours: Any = shapes_of(config, Vocabulary(32_000), TokenHeads())
    with torch.device("meta"):
        values = huggingface.huggingface_config(ours, {"eos": 2})
        theirs: Any = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**values))
    assert ours.published_parameters() == theirs.num_parameters() == parameters


def test_padding_stands_before_a_text_whose_last_token_stands_for_it(corpus: Path) -> None:
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    assert tokenizer_config(tokenizer, 64, frame=huggingface.frame)["padding_side"] == "left"
    values = huggingface.huggingface_config(build(), tokenizer.special_ids)
    assert values["pad_token_id"] == tokenizer.special_ids["pad"]


def test_config_goes_to_transformers_and_back() -> None:
    values = huggingface.huggingface_config(build(), {"eos": 2})
    found = huggingface.from_huggingface_config(values)
    assert found == {
        "name": "xlnet",
        "num_layers": 3,
        "hidden_size": 32,
        "num_heads": 4,
        "intermediate_size": 48,
        "norm_eps": 1e-12,
        "vocab_size": WORDS,
    }


def test_biases_and_segments_are_exempt_from_decay_and_every_parameter_has_a_depth() -> None:
    model = build()
    names = {name for name, _ in model.named_parameters()}
    assert set(model.parameter_depths()) == names
    exempt = {name for name in names if not model.decays(name)}
    assert {n for n in exempt if "attention." in n} == {
        f"blocks.{i}.attention.{n}"
        for i in range(3)
        for n in ("content_bias", "position_bias", "segment_bias", "segment_embedding")
    }
    assert "query_embedding" in exempt and "token_embedding.weight" not in exempt


def test_flops_are_those_that_torch_counts() -> None:
    model, given = build(), batch(2, rows=64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden = model(*given.values(), REUSE, 2)
        model.head(hidden, given["targets"]).backward()
    targets = given["targets"].shape[1]
    padded = 6.0 * targets * 56 * 32  # the head computes padded rows as well
    assert counter.get_total_flops() / 64 == pytest.approx(
        model.flops_of_sample(LENGTH, targets, REUSE, 2) + padded, rel=0.04
    )
