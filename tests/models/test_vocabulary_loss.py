"""The loss against float64 autograd: torch's cross_entropy with its label smoothing, and Mesh TensorFlow's z-loss,
log(sum(exp(logits))) ** 2 added for each token; whole, by chunks, with ids left out and over two ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.config import load_config
from pretraining.labels import IGNORED
from pretraining.models import loss as vocabulary_loss
from pretraining.models.heads import TokenHead
from pretraining.models.loss import Rows, VocabularyLoss
from pretraining.parallel.layers import PlainLayers
from tests.helpers import TINY, metrics, run_world, train_alone, valid_losses

VOCABULARY, PADDED, FEATURES = 100, 128, 16
UNUSED = ((3, 5), (60, 70))
USED = [i for i in range(VOCABULARY) if not any(start <= i < stop for start, stop in UNUSED)]


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden, weight, bias = (
        torch.randn(*s, generator=generator) for s in ((33, FEATURES), (PADDED, FEATURES), (PADDED,))
    )
    labels = torch.tensor(USED)[torch.randint(0, len(USED), (33,), generator=generator)]
    labels[:4] = IGNORED
    return hidden, weight, bias, labels


def exact(z_loss: float, smoothing: float = 0.0, used: Sequence[int] = range(VOCABULARY)) -> list[Tensor]:
    """-> the loss and its gradients by hidden, weight and bias, in float64."""
    hidden, weight, bias, labels = inputs()
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    logits = (leaves[0] @ leaves[1].T + leaves[2])[:, list(used)]
    renamed = torch.tensor([list(used).index(i) if i != IGNORED else IGNORED for i in labels.tolist()])
    loss = F.cross_entropy(logits, renamed, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    loss = loss + z_loss * logits.logsumexp(-1).square()[labels != IGNORED].sum()
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-4, 0.0), (0.3, 0.0), (0.0, 0.1), (0.3, 0.4)])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_value_and_gradients_are_exact(
    monkeypatch: pytest.MonkeyPatch, rows: int, z_loss: float, smoothing: float
) -> None:
    monkeypatch.setattr(vocabulary_loss, "LOGITS_IN_MEMORY", rows * PADDED)
    hidden, weight, bias, labels = inputs()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    for unused, used in (((), range(VOCABULARY)), (UNUSED, USED)):
        loss = VocabularyLoss.apply(*leaves, labels, Rows(VOCABULARY, unused=unused), z_loss, smoothing)
        found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        for ours, reference in zip(found, exact(z_loss, smoothing, used), strict=True):
            assert (ours - reference).abs().max() < 1e-5 * max(1.0, float(reference.abs().max()))


def split(world: Any, z_loss: float, smoothing: float) -> list[Tensor]:
    """The loss and its gradients by hidden and by this rank's half of the rows."""
    hidden, weight, bias, labels = inputs()
    half = PADDED // 2
    part = slice(world.rank * half, (world.rank + 1) * half)
    leaves = [hidden.requires_grad_(), weight[part].clone().requires_grad_(), bias[part].clone().requires_grad_()]
    rows = Rows(VOCABULARY, world.rank * half, torch.distributed.group.WORLD, UNUSED)  # one range is on both ranks
    loss = VocabularyLoss.apply(*leaves, labels, rows, z_loss, smoothing)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def test_rows_over_two_ranks_give_the_same() -> None:
    first, second = run_world(2, split, 0.3, 0.2)
    loss, hidden, weight, bias = exact(0.3, 0.2, USED)
    for rank in (first, second):
        assert float(rank[0]) == pytest.approx(float(loss), rel=1e-5)
        assert (rank[1] - hidden).abs().max() < 1e-4
    for index, whole in ((2, weight), (3, bias)):
        assert (torch.cat([first[index], second[index]]) - whole).abs().max() < 1e-4


def test_an_evaluation_leaves_it_out() -> None:
    hidden, weight, _, labels = inputs()
    plain, *others = (
        TokenHead(PlainLayers(), VOCABULARY, torch.nn.Parameter(weight), **options)
        for options in ({}, {"z_loss": 0.1}, {"label_smoothing": 0.1})
    )
    for head in others:
        assert not torch.equal(head(hidden, labels), plain(hidden, labels))
        assert torch.equal(head.eval()(hidden, labels), plain(hidden, labels))


@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "span_corruption"])
def test_it_is_off_by_default_and_a_key_of_every_objective_of_text(objective: str) -> None:
    model = {"causal_lm": "gpt_debug", "masked_lm": "bert_debug", "span_corruption": "t5_debug"}[objective]
    overrides = [f"model={model}", f"objective={objective}", "data.path=x"]
    assert [load_config([*overrides, *more]).objective.z_loss for more in ([], ["objective.z_loss=1e-4"])] == [
        0.0,
        1e-4,
    ]


def test_it_reaches_training_and_not_the_validation_loss(corpus: Any, tmp_path: Any) -> None:
    for name, z_loss in (("plain", 0), ("z", 0.1)):
        train_alone(
            *TINY,
            f"data.path={corpus}",
            f"run_dir={tmp_path / name}",
            "train.steps=2",
            "train.eval_every=2",
            f"objective.z_loss={z_loss}",
        )
    plain, with_z = tmp_path / "plain", tmp_path / "z"
    assert metrics(with_z)[1]["loss"] > metrics(plain)[1]["loss"] + 1.0
    assert valid_losses(with_z)[0] == valid_losses(plain)[0]
    assert valid_losses(with_z)[2] != valid_losses(plain)[2]
