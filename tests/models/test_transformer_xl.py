"""Transformer-XL: its segments against one long pass, its memory against an unlimited one, its published size."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretraining.config import load_config
from pretraining.labels import IGNORED
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.shapes import shapes_of
from pretraining.models.transformer_xl.config import TransformerXLConfig
from pretraining.models.transformer_xl.relative import shifted, sinusoids
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.recurrent_lm import RecurrentLM, RecurrentLMConfig
from pretraining.parallel.layers import PlainLayers

TOKENIZER: Any = SimpleNamespace(
    pad=0,
    bos=1,
    eos=2,
    fim_prefix=3,
    fim_suffix=4,
    fim_middle=5,
    used_ids=lambda roles: np.arange(200),
    text_bytes=np.ones(200, np.int64),
)
SEGMENT, MEMORY = 8, 12  # the memory spans two segments
SHAPE = {"num_layers": 3, "hidden_size": 24, "num_heads": 3, "max_seq_len": 512, "intermediate_size": 32}


def objective(length: int, **options: Any) -> RecurrentLM:
    config = RecurrentLMConfig("recurrent_lm", **{"segment": SEGMENT, **options})
    return RecurrentLM(config, SampleSpec(seq_len=length, tokenizer=TOKENIZER))


def build(memory: int = MEMORY, **options: Any) -> Any:
    """In float64, with weights large enough for every path to matter."""
    layers = PlainLayers()
    config = TransformerXLConfig("transformer_xl", memory=memory, **SHAPE, **options)
    model: Any = attach_heads(build_model(config, Vocabulary(200), layers), objective(64), layers)
    model.initialize(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double()


def one_long_pass(model: Any, tokens: Tensor, documents: Tensor) -> Tensor:
    """Every block on the whole sequence at once, by the definition: a score for each pair of tokens from their
    distance, keys and values of earlier segments from hidden states without a gradient."""
    config, n = model.config, tokens.shape[1]
    size, heads = config.hidden_size, config.num_heads
    x = model.token_embedding(tokens) * math.sqrt(size)
    places = torch.arange(n)
    segment = places // SEGMENT
    seen = (places <= places[:, None]) & (places >= segment[:, None] * SEGMENT - config.memory)
    mask = (seen & (documents[:, :, None] == documents[:, None, :]))[:, None]
    own = segment[:, None] == segment
    distance = (places[:, None] - places).clamp(min=0)
    for block in model.blocks:
        a = block.attention
        u, v = (a.content_bias, a.position_bias) if config.untie_biases else (model.content_bias, model.position_bias)

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (heads, -1)).transpose(1, 2)

        q = split(a.query(x))
        r = a.position(sinusoids(places, size).to(x.dtype)).unflatten(-1, (heads, -1))  # [distance, heads, head_dim]
        live, held = (
            ((q + u[:, None]) @ split(a.key(h)).transpose(-1, -2), split(a.value(h))) for h in (x, x.detach())
        )
        by_position = torch.einsum("bhid,ijhd->bhij", q + v[:, None], r[distance])
        scores = torch.where(own, live[0], held[0]) + by_position
        weights = (scores / math.sqrt(size // heads)).masked_fill(~mask, -torch.inf).softmax(-1)
        mixed = (weights * own) @ live[1] + (weights * ~own) @ held[1]
        x = block.attention_norm(x + a.output(mixed.transpose(1, 2).flatten(2)))
        x = block.mlp_norm(x + block.mlp.down(F.relu(block.mlp.up(x))))
    return x


def documents_of(*lengths: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


@pytest.mark.parametrize("options", [{}, {"untie_biases": True}, {"activation_checkpointing": True}])
def test_segments_are_one_long_pass(options: dict[str, Any]) -> None:
    """In value and in every gradient."""
    model = build(**options)
    tokens, documents = torch.randint(6, 200, (2, 40)), documents_of(19, 21).expand(2, 40)
    found, expected = model(tokens, documents, SEGMENT), one_long_pass(model, tokens, documents)
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    weights = torch.randn_like(expected)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("head")]
    ours, theirs = (torch.autograd.grad((h * weights).sum(), parameters, retain_graph=True) for h in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 1e-12 * b.norm()


def test_warm_segments_are_the_same_memory_without_a_gradient_or_an_output() -> None:
    model = build()
    tokens, documents = torch.randint(6, 200, (2, 40)), documents_of(40).expand(2, 40)
    warm, whole = model(tokens, documents, SEGMENT, 2), model(tokens, documents, SEGMENT)
    assert (warm - whole[:, 2 * SEGMENT :]).abs().max() < 1e-14
    weights = torch.randn_like(warm)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("head")]
    ours, theirs = (torch.autograd.grad((h * weights).sum(), parameters) for h in (warm, whole[:, 2 * SEGMENT :]))
    for a, b in zip(ours, theirs, strict=True):  # the memory has none in any case
        assert (a - b).norm() < 1e-13 * b.norm()


def test_as_many_warm_segments_as_blocks_are_an_unlimited_recurrence() -> None:
    """The inputs of the top block reach that many segments back; fewer show less."""
    model = build(memory=SEGMENT)
    tokens = torch.randint(6, 200, (2, 10 * SEGMENT))
    unlimited = model(tokens, None, SEGMENT)[:, -SEGMENT:]
    parts = [model(tokens[:, -(warm + 1) * SEGMENT :], None, SEGMENT, warm) for warm in range(4)]
    differences = [float((part - unlimited).detach().abs().mean()) for part in parts]
    assert differences[3] < 1e-15 and differences[0] > differences[1] > differences[2] > 1e-3


def test_documents_do_not_see_each_other() -> None:
    model = build()
    first, second = torch.randint(6, 200, (1, 13)), torch.randint(6, 200, (1, 19))
    hidden = model(torch.cat([first, second], 1), documents_of(13, 19), SEGMENT)
    other = model(torch.cat([torch.randint(6, 200, (1, 13)), second], 1), documents_of(13, 19), SEGMENT)
    assert torch.equal(hidden[:, 13:], other[:, 13:])
    across = model(torch.cat([first, second], 1), None, SEGMENT)
    assert (across[:, :13] - hidden[:, :13]).abs().max() < 1e-12 and (across - hidden).abs().max() > 1e-3


def test_nothing_is_seen_from_the_future() -> None:
    model = build()
    x = torch.randint(6, 200, (1, 24))
    changed = x.clone()
    changed[0, 10] = 5
    a, b = model(x, None, SEGMENT), model(changed, None, SEGMENT)
    assert torch.equal(a[:, :10], b[:, :10]) and ((a - b)[:, 10:].abs().amax(-1) > 1e-6).all()


def test_the_shift_turns_columns_into_distances() -> None:
    length, keys = 5, 8
    columns = torch.arange(keys - 1, -1, -1.0).expand(2, length, keys)  # each column's distance
    found = shifted(columns)
    for i in range(length):
        query = keys - length + i
        assert found[0, i, : query + 1].tolist() == [query - j for j in range(query + 1)]


def test_batches_do_not_depend_on_their_neighbors() -> None:
    model, task = build().eval(), objective(32)
    rng = np.random.default_rng(1)
    samples = [task.corrupt([rng.integers(6, 200, 20), rng.integers(6, 200, n)], rng) for n in (13, 9, 4)]
    batch = {name: torch.from_numpy(array) for name, array in task.collate(samples).items()}
    whole = task.loss(model, batch)["recurrent_lm"]
    parts = [task.loss(model, {n: t[i : i + 1] for n, t in batch.items()})["recurrent_lm"] for i in range(3)]
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-6)  # type: ignore[union-attr]
    assert task.counts(samples) == {"recurrent_lm": int((batch["labels"] != IGNORED).sum())}


@pytest.mark.parametrize(
    ("preset", "words", "parameters"),
    [("transformer_xl_base", 267_735, 151_106_305), ("transformer_xl_large", 1, None)],
)
def test_parameter_counts_are_the_published_ones(preset: str, words: int, parameters: int | None) -> None:
    """151M (Dai et al. 2019, table 1; the authors' code counts 1,233 more, three clusters of its adaptive softmax). The
    large one's are of adaptive embeddings; its blocks are pinned."""
    config = load_config([f"model={preset}", "objective=recurrent_lm", "data.path=x", "objective.segment=6"]).model
    tokenizer: Any = SimpleNamespace(**{**vars(TOKENIZER), "used_ids": lambda roles: np.arange(words)})
    task = RecurrentLM(RecurrentLMConfig("recurrent_lm", segment=6), SampleSpec(seq_len=1350, tokenizer=tokenizer))
    model = shapes_of(config, Vocabulary(words), task)
    if parameters is not None:
        assert model.published_parameters() == parameters
    else:
        of_block = 5 * 1024 * 1024 + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024 + 2 * 16 * 64
        assert model.published_parameters() == 18 * of_block + 1024 + 1


def test_biases_of_attention_are_exempt_from_decay_and_every_parameter_has_a_depth() -> None:
    for untied in (False, True):
        model = build(untie_biases=untied)
        depths = model.parameter_depths()
        assert set(depths) == {name for name, _ in model.named_parameters()}
        biases = [name for name, _ in model.named_parameters() if name.endswith(("content_bias", "position_bias"))]
        assert len(biases) == (6 if untied else 2) and not any(model.decays(name) for name in biases)
        assert model.decays("blocks.0.attention.query.weight")
        assert depths[biases[0]] == (3 if untied else 4)


def test_flops_are_those_that_torch_counts() -> None:
    model, task = build().float(), objective(32, warm=1)
    batch = {"tokens": torch.randint(6, 200, (64, 32)), "labels": torch.randint(6, 200, (64, 32))}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        task.loss(model, batch)["recurrent_lm"].backward()
    padded = 6.0 * 56 * SHAPE["hidden_size"]  # the head computes padded rows as well
    assert counter.get_total_flops() / (64 * 24) == pytest.approx(task.flops_per_unit(model) + padded, rel=0.03)
