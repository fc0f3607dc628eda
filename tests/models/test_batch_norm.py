"""Batch normalization over the global batch."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pretraining.models.huggingface.batch_norm import GlobalBatchNorm

RANKS = 2


class Ranks:
    """A process group whose ranks are threads of this process."""

    def __init__(self) -> None:
        self.barrier, self.parts = Barrier(RANKS, timeout=60), []

    def size(self) -> int:
        return RANKS

    def all_reduce(self, tensor: torch.Tensor, group: "Ranks") -> None:
        assert group is self
        self.parts.append(tensor)
        self.barrier.wait()
        total = sum(self.parts)
        if self.barrier.wait() == 0:
            self.parts.clear()
        self.barrier.wait()
        tensor.copy_(total)


def norms(group=None) -> tuple[nn.BatchNorm2d, GlobalBatchNorm]:
    torch.manual_seed(0)
    usual = nn.BatchNorm2d(3)
    ours = GlobalBatchNorm(usual, group)
    with torch.no_grad():
        for norm in (usual, ours):
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, -0.1]))
    return usual, ours


def batch(seed: int) -> torch.Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def outcome(norm: nn.Module, x: torch.Tensor, first: int = 0) -> dict[str, torch.Tensor]:
    """first: of the images of `x`, its number in the global batch."""
    x = x.clone().requires_grad_()
    y = norm(x)
    weights = torch.arange(y.numel()).view_as(y) + first * y[0].numel()
    (y.sin() * weights / 100).sum().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        **{name: getattr(norm, name).grad for name in ("weight", "bias")},
        **{name: getattr(norm, name).detach().clone() for name in ("running_mean", "running_var")},
    }


def test_is_torchs_on_one_rank():
    usual, ours = norms()
    for seed in range(3):
        expected, found = outcome(usual, batch(seed)), outcome(ours, batch(seed))
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(ours.eval()(batch(9)), usual.eval()(batch(9)))
    assert {n for n, p in ours.named_parameters() if not p.requires_grad} == {"running_mean", "running_var"}


def test_two_ranks_are_torchs_on_one(monkeypatch: pytest.MonkeyPatch):
    """Statistics, and through them gradients, are those of the global batch."""
    group = Ranks()
    monkeypatch.setattr(dist, "all_reduce", group.all_reduce)
    usual, _ = norms()
    ours = [norms(group)[1] for _ in range(RANKS)]
    for seed in range(2):
        expected, halves = outcome(usual, batch(seed)), batch(seed).chunk(RANKS)
        with ThreadPoolExecutor(RANKS) as threads:
            found = list(threads.map(outcome, ours, halves, (0, len(halves[0]))))
        for name, tensor in expected.items():
            parts = [each[name] for each in found]
            whole = torch.cat(parts) if name in ("x", "y") else sum(parts) if name in ("weight", "bias") else parts[0]
            torch.testing.assert_close(whole, tensor, rtol=2e-5, atol=2e-5)
        assert all(torch.equal(found[0][name], found[1][name]) for name in ("running_mean", "running_var"))
