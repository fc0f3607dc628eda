"""ELMo: its published size, its LSTM against the definition, and what either direction may see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pretraining.config import load_config
from pretraining.models.elmo.characters import BEGIN, BOS, END, EOS, PAD, character_table
from pretraining.models.elmo.config import ELMoConfig
from pretraining.models.elmo.model import ProjectedLSTM
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.shapes import shapes_of
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import Layers, PlainLayers

CHARACTERS = 12


class Heads:
    def heads(self, model: Any, layers: Layers) -> dict[str, Any]:
        return {"head": model.make_direction_head(layers)}


def build(**options: Any) -> Any:
    config = ELMoConfig("elmo", 3, 16, 24, 64, filters=[(1, 8), (2, 8), (4, 16)], character_size=6, **options)
    layers = PlainLayers()
    model: Any = attach_heads(build_model(config, Vocabulary(100), layers), Heads(), layers)
    model.initialize(1)
    return model


def characters(rows: int, length: int) -> Tensor:
    return torch.randint(0, 256, (rows, length, CHARACTERS), generator=torch.Generator().manual_seed(rows + length))


def test_parameters_without_the_softmax_are_the_published_ones() -> None:
    """93.6M (allennlp.org/elmo, "Original")."""
    config = load_config(["model=elmo_original", "objective=bidirectional_lm", "data.path=x"]).model
    model: Any = shapes_of(config, Vocabulary(10), Heads())
    assert model.published_parameters() - 10 * (512 + 1) == 93_600_848


def test_the_lstm_is_that_of_its_definition() -> None:
    """Gate by gate in float64, with a second sequence beginning within the row; the bounds act."""
    torch.manual_seed(1)
    lstm = ProjectedLSTM(PlainLayers(), 5, 7, 0.3).double()
    for parameter in lstm.parameters():
        torch.nn.init.normal_(parameter)
    x, begins = torch.randn(2, 9, 5).double(), torch.zeros(2, 9, dtype=torch.bool)
    begins[:, 0], begins[1, 4] = True, True
    found = lstm(x, begins)
    names = ("input_weight", "recurrent_weight", "projection_weight")
    w_in, w_rec, w_out = (getattr(lstm, name) for name in names)
    for row in range(2):
        h, c = torch.zeros(5).double(), torch.zeros(7).double()
        for t in range(9):
            if begins[row, t]:
                h, c = h * 0, c * 0
            i, j, f, o = (w_in @ x[row, t] + w_rec @ h + lstm.bias).split(7)
            c = ((f + 1).sigmoid() * c + i.sigmoid() * j.tanh()).clamp(-0.3, 0.3)
            h = (w_out @ (o.sigmoid() * c.tanh())).clamp(-0.3, 0.3)
            assert (found[row, t] - h).abs().max() < 1e-14
    assert (found.abs() == 0.3).any() and (found.abs() < 0.3).any()


def test_every_lstm_but_the_first_adds_what_it_read() -> None:
    """bilm-tf, training.py, use_skip_connections."""
    model, documents = build().eval(), torch.zeros(2, 7, dtype=torch.long)
    begins = torch.zeros_like(documents, dtype=torch.bool)
    begins[:, 0] = True
    first, *others = model.ahead
    x = first(model.encoder(characters(2, 7)), begins)
    for lstm in others:
        x = x + lstm(x, begins)
    torch.testing.assert_close(model(characters(2, 7), documents)[0], x)


def test_neither_direction_sees_what_it_predicts() -> None:
    """Gradients of every output by every token's characters, over two packed documents: exactly 0 from the future, from
    the past of the other direction, and from the other document; not 0 from all else."""
    model, length = build().eval(), 11
    documents = torch.tensor([[0] * 5 + [1] * 6])
    embedded: list[Tensor] = []
    model.encoder.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    hidden = model(characters(1, length), documents)
    place = torch.arange(length)
    same = documents[0][:, None] == documents[0]
    for direction, allowed in zip(hidden, (place <= place[:, None], place >= place[:, None]), strict=True):
        for t in range(length):
            (gradient,) = torch.autograd.grad(direction[0, t].sum(), embedded[0], retain_graph=True)
            reached = gradient[0].abs().amax(-1)
            seen = allowed[t] & same[t]
            assert (reached[~seen] == 0).all() and (reached[seen] > 0).all()


def test_padding_changes_nothing() -> None:
    model, x = build().eval(), characters(1, 8)
    documents = torch.zeros(1, 8, dtype=torch.long)
    padded = torch.cat([x, torch.full((1, 3, CHARACTERS), PAD)], 1)
    with_padding = torch.cat([documents, torch.full((1, 3), -1)], 1)
    for short, long in zip(model(x, documents), model(padded, with_padding), strict=True):
        assert (short - long[:, :8]).abs().max() < 1e-6


def test_a_token_is_spelled_by_its_bytes() -> None:
    table = character_table([b"", b"", b"a\xc3\xa9", b"abcdefgh"], 6, bos=0, eos=1, width=6)
    assert table.tolist() == [
        [BEGIN, BOS, END, PAD, PAD, PAD],
        [BEGIN, EOS, END, PAD, PAD, PAD],
        [BEGIN, 97, 195, 169, END, PAD],
        [BEGIN, 97, 98, 99, 100, END],
        [BEGIN, END, PAD, PAD, PAD, PAD],
        [BEGIN, END, PAD, PAD, PAD, PAD],
    ]


def test_every_parameter_has_a_gradient_and_a_depth() -> None:
    model, documents = build(), torch.zeros(2, 9, dtype=torch.long)
    labels = torch.randint(0, 100, (2, 9))
    sum(model.head(hidden, labels) for hidden in model(characters(2, 9), documents)).backward()
    depths = model.parameter_depths()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert name in depths
    assert depths["ahead.2.bias"] == 1 and depths["back.0.bias"] == 3 and depths["encoder.projection.weight"] == 4
    assert (
        model.padded_rows("head.weight") == model.padded_rows("head.bias") == 28 and model.head.weight[100:].eq(0).all()
    )


def test_flops_are_those_that_torch_counts() -> None:
    model, documents = build(), torch.zeros(4, 20, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        hidden = model(characters(4, 20), documents)
        sum(model.head(h, torch.randint(0, 100, (4, 20))) for h in hidden).backward()
    padded = 6.0 * 2 * 28 * 16  # the head computes padded rows as well
    assert counter.get_total_flops() / 80 == pytest.approx(model.flops_per_token(CHARACTERS) + padded, rel=0.05)
