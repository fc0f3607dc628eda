"""Batch normalization over the global batch."""

import torch
from torch import nn

from pretraining.models.huggingface.batch_norm import GlobalBatchNorm


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


def outcome(norm: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y.sin() * torch.arange(y.numel()).view_as(y) / 100).sum().backward()
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
