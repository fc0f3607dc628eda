"""Batch normalization over the global batch: its statistics do not depend on how many ranks share it.

A step has one micro-batch on each rank (HuggingFaceConfig.accumulation_problems): statistics of a part of the batch are
another model. Running statistics are parameters without a gradient, so that a checkpoint holds them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks of a group; its gradient is summed over them too, since all of them used the sum."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)  # type: ignore[attr-defined]
        return total, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """As nn.BatchNorm2d, over the batches of all ranks of `group` (None: of this one), in fp32.

    x: [batch, channels, height, width], of the same shape on every rank.
    """

    def __init__(self, like: nn.BatchNorm2d, group: dist.ProcessGroup | None) -> None:
        assert like.affine and like.track_running_stats and like.momentum is not None
        super().__init__(like.num_features, like.eps, like.momentum, device=like.weight.device)
        self.group = group
        for name in ("running_mean", "running_var"):
            values = self._buffers.pop(name)
            assert values is not None
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        kind, x = x.dtype, x.float()
        if self.training:
            mean, variance, count = self._statistics(x)
            self._run(mean.detach(), variance.detach() * count / (count - 1))
        else:
            mean, variance = (t[:, None, None] for t in (self.running_mean, self.running_var))  # type: ignore[index]
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return ((x - mean) * scale + self.bias[:, None, None]).to(kind)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """-> (mean and variance, each [channels, 1, 1]; over how many values)."""
        count = x[:, 0].numel() * (1 if self.group is None else self.group.size())
        mean = self._summed(x) / count
        return mean, self._summed((x - mean).square()) / count, count

    def _summed(self, x: Tensor) -> Tensor:
        total = x.sum((0, 2, 3))
        return (total if self.group is None else _SumOverRanks.apply(total, self.group))[:, None, None]

    @torch.no_grad()
    def _run(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        self.running_mean.lerp_(mean.flatten(), self.momentum)  # type: ignore[union-attr]
        self.running_var.lerp_(variance.flatten(), self.momentum)  # type: ignore[union-attr]


def normalize_globally(network: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Replaces every nn.BatchNorm2d within it."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, GlobalBatchNorm(child, group))


def running_statistics(network: nn.Module) -> set[nn.Parameter]:
    """What counts as no parameter in papers."""
    norms = [module for module in network.modules() if isinstance(module, GlobalBatchNorm)]
    return {p for norm in norms for p in norm.parameters() if p is not norm.weight and p is not norm.bias}
