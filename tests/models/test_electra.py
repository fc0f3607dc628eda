"""ELECTRA against transformers' two models, its published sizes, and what its two losses reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pretraining.config import load_config
from pretraining.models.electra import huggingface, huggingface_generator, sampling
from pretraining.models.electra.config import ElectraConfig
from pretraining.models.electra.sampling import COPIES, SamplingHead, gumbel, sample, splitmix64
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.shapes import shapes_of
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.replaced_token import ReplacedToken, ReplacedTokenConfig
from pretraining.parallel.layers import PlainLayers

VOCABULARY = 30522
SMALL = ElectraConfig("electra", 3, 48, 4, 64, 24, 16, generator_num_heads=2, generator_num_layers=2)
TOKENIZER: Any = SimpleNamespace(
    pad=0, cls=1, sep=2, mask=3, is_text=np.arange(300) > 3, used_ids=lambda roles: np.arange(300)
)
PARTS = {"discriminator": huggingface, "generator": huggingface_generator}


def objective(**options: Any) -> ReplacedToken:
    return ReplacedToken(ReplacedTokenConfig("replaced_token", **options), SampleSpec(seq_len=64, tokenizer=TOKENIZER))


@pytest.fixture(scope="module")
def model() -> Any:
    layers = PlainLayers()
    built: Any = attach_heads(build_model(SMALL, Vocabulary(300), layers), objective(), layers)
    built.initialize(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            added = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1
            parameter.add_(added)
    return built.eval()


def batch(count: int = 3) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    task = objective()
    samples = []
    for number in range(count):
        tokens = np.concatenate([[1], rng.integers(4, 300, 40 + number), [2]])
        sample_ = {"segments": tokens * 0, "positions": np.arange(len(tokens)), "documents": tokens * 0}
        samples.append(sample_ | task._masked(tokens, rng))
    return {name: torch.from_numpy(array) for name, array in task.collate(samples).items()}


def test_each_position_is_drawn_by_its_own_key_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    head = SamplingHead(PlainLayers(), 300, torch.nn.Parameter(torch.randn(384, 8, generator=rng)))
    hidden, keys = torch.randn(2, 7, 8, generator=rng), torch.arange(14).view(2, 7)
    whole = head._draw(hidden, keys)
    assert torch.equal(whole.view(-1), sample(head.logits(hidden.flatten(0, 1)), keys.view(-1)))
    monkeypatch.setattr(sampling, "LOGITS_IN_MEMORY", 4 * COPIES * 384)  # four positions a chunk
    assert torch.equal(head._draw(hidden, keys), whole)


# The discriminator's are transformers', and the paper's 14M, 110M and 335M; the generator's are those that it does not
# share, its head's among them
@pytest.mark.parametrize(
    ("preset", "discriminator", "generator"),
    [
        ("electra_small", 13_549_057, 647_162),
        ("electra_base", 109_483_009, 9_903_418),
        ("electra_large", 335_142_913, 19_512_378),
    ],
)
def test_parameter_counts_are_the_published_ones(preset: str, discriminator: int, generator: int) -> None:
    config = load_config([f"model={preset}", "objective=replaced_token", "data.path=x"]).model
    tokenizer: Any = SimpleNamespace(
        pad=0, cls=1, sep=2, mask=3, is_text=np.ones(VOCABULARY, bool), used_ids=lambda roles: np.arange(VOCABULARY)
    )
    task = ReplacedToken(ReplacedTokenConfig("replaced_token"), SampleSpec(seq_len=64, tokenizer=tokenizer))
    shapes: Any = shapes_of(config, Vocabulary(VOCABULARY), task)
    with torch.device("meta"):
        theirs = {
            "discriminator": transformers.ElectraForPreTraining(settings(huggingface, shapes)),
            "generator": transformers.ElectraForMaskedLM(settings(huggingface_generator, shapes)),
        }
    shared = sum(p.numel() for name, p in theirs["generator"].named_parameters() if ".embeddings." in name)
    assert theirs["discriminator"].num_parameters() == discriminator
    assert theirs["generator"].num_parameters() - shared == generator
    assert shapes.published_parameters() == discriminator + generator


def settings(part: Any, model: Any) -> Any:
    return transformers.ElectraConfig(**part.huggingface_config(model, {"pad": 0}), attn_implementation="eager")


@pytest.mark.parametrize("name", PARTS)
def test_logits_equal_transformers(model: Any, name: str) -> None:
    part = PARTS[name]
    values = settings(part, model)
    theirs = getattr(transformers, part.architectures[0])(values).eval()
    state, parameters = theirs.state_dict(), dict(model.named_parameters())
    with torch.no_grad():
        for entry in part.weight_map(model):
            state[entry.theirs].copy_(entry.export(parameters[entry.ours]))
    for inputs in part.probe_inputs(model, np.random.default_rng(1)):
        with torch.no_grad():
            found, expected = part.probe_outputs(model, inputs, {})["logits"], theirs(**inputs).logits
        assert found.shape == expected.shape and (found - expected).abs().max() < 2e-5


def test_the_generator_has_no_gradient_from_detection(model: Any) -> None:
    """Nor have its projection and its head; what both share is reached by both losses, the discriminator by its own."""
    sums = objective().loss(model, batch())
    reached = {}
    for term in ("masked_lm", "detection"):
        grads = torch.autograd.grad(sums[term], list(model.parameters()), retain_graph=True, allow_unused=True)
        reached[term] = {
            name.split(".")[0] for (name, _), g in zip(model.named_parameters(), grads, strict=True) if g is not None
        }
    shared = {"token_embedding", "position_embedding", "segment_embedding", "embedding_norm"}
    assert reached["masked_lm"] == {"generator", "head"} | shared
    assert reached["detection"] == {"discriminator", "detection_head"} | shared
    assert sums["detection"].requires_grad and not sums["replaced"].requires_grad


def test_only_what_was_drawn_wrong_is_replaced_and_no_mask_reaches_the_discriminator(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, seen = batch(), {}
    discriminate = type(model).discriminate
    monkeypatch.setattr(
        type(model),
        "discriminate",
        lambda self, tokens, *more: seen.update(x=tokens) or discriminate(self, tokens, *more),
    )
    sums = objective().loss(model, given)
    counted = given["labels"] >= 0
    rows = counted.nonzero()[:, 0]
    original = given["tokens"].clone()
    original[rows, given["masked_positions"][counted]] = given["labels"][counted]
    changed = seen["x"] != original
    places = torch.zeros_like(changed)
    places[rows, given["masked_positions"][counted]] = True
    assert not (changed & ~places).any() and changed.any() and not (seen["x"] == TOKENIZER.mask).any()
    assert int(sums["replaced"]) == int(changed.sum())


def test_samples_by_themselves_sum_to_the_batch(model: Any) -> None:
    """The keys travel with the sample, so that what is drawn does not depend on its neighbors."""
    given, task = batch(), objective()
    whole = task.loss(model, given)
    parts = [task.loss(model, {name: t[i : i + 1] for name, t in given.items()}) for i in range(3)]
    for term, value in whole.items():
        assert float(sum(p[term].detach() for p in parts)) == pytest.approx(float(value.detach()), rel=1e-5)


def test_padding_takes_no_part(model: Any) -> None:
    given, task = batch(), objective()
    assert (given["documents"][:, 48:] == -1).all()
    short = {name: t[:, :48] if t.shape[1] == 64 else t for name, t in given.items()}
    for term, value in task.loss(model, given).items():
        assert float(task.loss(model, short)[term].detach()) == pytest.approx(float(value.detach()), rel=1e-5)


def test_the_noise_is_splitmix64() -> None:
    seeds, mask = [0, 1, -1, 2**63 - 1, -(2**63), 1234567], 2**64 - 1

    def reference(seed: int, number: int) -> int:
        x = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    numbers = torch.arange(200)
    found = splitmix64(torch.tensor(seeds)[:, None], numbers).tolist()
    assert [[x & mask for x in row] for row in found] == [[reference(s, n) for n in range(200)] for s in seeds]
    assert reference(1234567, 0) == 6457827717110365317  # the generator's own test vector
    assert gumbel(torch.arange(10**4)[:, None], numbers).isfinite().all()


def test_samples_follow_the_softmax() -> None:
    """Chi-square of 49 degrees of freedom, with consecutive keys; 85.4 is exceeded once in a thousand."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3))
    drawn = sample(logits.expand(100_000, 50), torch.arange(100_000))
    expected = logits.softmax(-1) * 100_000
    assert float(((torch.bincount(drawn, minlength=50) - expected) ** 2 / expected).sum()) < 85.4


def test_two_halves_of_the_vocabulary_draw_what_the_whole_draws() -> None:
    logits, keys = torch.randn(500, 60), torch.arange(500)
    noisy = logits + gumbel(keys[:, None], torch.arange(60))
    best = torch.stack([noisy[:, :30].max(-1).values, noisy[:, 30:].max(-1).values]).argmax(0)
    halves = torch.where(best == 0, noisy[:, :30].argmax(-1), 30 + noisy[:, 30:].argmax(-1))
    assert torch.equal(halves, sample(logits, keys))


def test_every_parameter_has_a_gradient_and_a_depth(model: Any) -> None:
    sums = objective().loss(model, batch())
    (sums["masked_lm"] + 50 * sums["detection"]).backward()
    depths = model.parameter_depths()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and name in depths
    assert depths["token_embedding.weight"] == 4 and depths["generator.blocks.1.mlp.up.weight"] == 1
    model.zero_grad()
