"""What every optimizer step has in common, whatever the layout: unscale, clip, skip what is not finite, update.

An update rule sees shards: the parts of tensors that this rank updates. Statistics of whole tensors are summed
over the ranks that hold the other parts (Layout.sum_over_parts). Nothing here waits for the device, AdamW's few first
steps apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretraining.parallel.fragments import Fragment
from pretraining.parallel.layout import Layout
from pretraining.parallel.mesh import Axis


class Settings(NamedTuple):
    """What a parameter's group decides. exempt: a bias, a norm or the like, without decay and trust ratio."""

    weight_decay: float
    lr_scale: float = 1.0
    exempt: bool = False


@dataclass
class ParameterShard:
    """One fragment of a tensor: its fp32 values, its gradient of this step, its settings and optimizer state.

    value and grad: [stop - start] or, where the fragment is a whole box, that box's shape; views, not copies.
    tensor: the tensor's number in the layout. grad is set before each step, which may overwrite it.
    """

    fragment: Fragment
    value: Tensor
    settings: Settings
    tensor: int
    grad: Tensor = field(default_factory=lambda: torch.empty(0))
    state: dict[str, Tensor] = field(default_factory=dict)


class Step(NamedTuple):
    """One update. updates: how many came before it; grad_scale: gradients are to be divided by it;
    finite: 1.0, or 0.0 where the step must leave everything as it is. All but lr are fp32 scalars on the device.

    taking_part: [tensors], 1.0, or 0.0 where the whole gradient is exactly zero, as of a tensor that takes no part in
    the loss: its decay would be all of its update, and erase it.
    """

    lr: float
    updates: Tensor
    grad_scale: Tensor
    finite: Tensor
    taking_part: Tensor


class UpdateRule:
    """An optimizer's mathematics.

    whole_state: names of the state that is the whole tensor's, the same on every rank that holds a part of it;
    all other state is shaped as its shard.
    factor_names: of `factors`, what the last update was multiplied or divided by, each [shards].
    """

    weight_decay: float
    layer_decay: float
    whole_state: frozenset[str] = frozenset()
    factor_names: tuple[str, ...] = ()
    factors: Mapping[str, Tensor] = MappingProxyType({})

    def initial_state(self, shard: ParameterShard) -> dict[str, Tensor]:
        raise NotImplementedError

    def attach(self, shards: list[ParameterShard], layout: Layout, device: torch.device) -> None:
        """Makes ready what depends on the layout alone; the shards have their state."""

    def after_load(self, shards: list[ParameterShard], layout: Layout) -> None:
        """Makes ready what depends on the shards' state, which was overwritten. A collective of all ranks."""

    def update(self, shards: list[ParameterShard], step: Step, layout: Layout) -> None:
        raise NotImplementedError


class Optimizer(torch.optim.Optimizer):
    """Applies a rule to the shards that `attach` gave it. It is a torch Optimizer because DeepSpeed wants one;
    its param_groups are what DeepSpeed puts there and say nothing about decay or learning rate.

    grad_norm: global norm of the unscaled gradients before clipping, after each step, fp32 scalar.
    dynamic_scale: what losses are multiplied by under fp16; it is saved under any precision, so that a run can
    change to fp16.
    measures: whether the next step is measured, which takes a copy of the shards' values; on all ranks alike.
    measured: of the last step that was, see `_measure`; None where it was skipped.
    """

    # Below 1, gradients would be lost that fp16 can hold: what still overflows there is not the scale's fault.
    SMALLEST_SCALE = 1.0
    GROWTH_INTERVAL = 2000  # finite steps after which the loss scale doubles (Micikevicius et al. 2018, section 3.2)

    def __init__(self, parameters: list[Tensor], rule: UpdateRule, grad_clip: float, dynamic_loss_scale: bool) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.rule, self.grad_clip, self.dynamic = rule, grad_clip, dynamic_loss_scale
        self.shards: list[ParameterShard] = []
        self.layout = Layout()
        self.read_gradients: Callable[[], None] = lambda: None
        device = parameters[0].device
        self.updates = torch.zeros((), device=device)
        self.dynamic_scale, self.no_scale = torch.tensor(2.0**16, device=device), torch.ones((), device=device)
        self.good_steps = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        self.finite = torch.ones((), device=device)
        self.measures = False
        self.measured: Tensor | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """torch's own is wrapped to hide it from its compiler, which that loads: 1.3 s of CPU at each start."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    @property
    def loss_scale(self) -> Tensor:
        """What losses are to be multiplied by."""
        return self.dynamic_scale if self.dynamic else self.no_scale

    def attach(
        self, shards: list[ParameterShard], layout: Layout, read_gradients: Callable[[], None] = lambda: None
    ) -> None:
        """Sets which fragments this rank updates, with fresh state.

        read_gradients: sets each shard's grad, at the beginning of a step.
        """
        self.shards, self.layout, self.read_gradients = shards, layout, read_gradients
        self.tensor_numbers = torch.tensor([p.tensor for p in shards], dtype=torch.long, device=self.updates.device)
        for shard in shards:
            shard.state = self.rule.initial_state(shard)
        self.rule.attach(shards, layout, self.updates.device)

    @torch.no_grad()
    def after_load(self) -> None:
        """To be called once what `state_tensors` gave was overwritten, on all ranks."""
        self.rule.after_load(self.shards, self.layout)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates the shards from their `grad`, at the learning rate in param_groups[0]."""
        self.read_gradients()
        squares = self._squared_gradients()
        self.grad_norm = self.layout.agreed(squares.sum()).sqrt() / self.loss_scale
        self.finite = torch.isfinite(self.grad_norm).float()
        clip = torch.clamp(self.grad_clip / (self.grad_norm + 1e-6), max=1.0) if self.grad_clip else 1.0
        scale = torch.nan_to_num(self.loss_scale / clip, nan=1.0, posinf=1.0)
        taking_part = (squares > 0).float()
        step = Step(float(self.param_groups[0]["lr"]), self.updates, scale, self.finite, taking_part)
        before = [p.value.clone() for p in self.shards] if self.measures else None
        self.rule.update(self.shards, step, self.layout)
        if before is not None:
            self.measured = self._measure(squares / self.loss_scale**2, before)
        self.updates += self.finite
        if self.dynamic:
            self._adjust_loss_scale()

    def skip(self) -> None:
        """Records a step that DeepSpeed skipped because its gradients were not finite."""
        self.grad_norm = torch.full_like(self.grad_norm, float("inf"))
        self.finite, self.measured = torch.zeros_like(self.finite), None
        if self.dynamic:
            self._adjust_loss_scale()

    def state_tensors(self) -> list[tuple[Fragment, Tensor]]:
        """Everything that a resumed run needs, as live tensors."""
        scalars = {"updates": self.updates, "loss_scale": self.dynamic_scale, "good_steps": self.good_steps}
        everywhere = frozenset(Axis)
        found = [
            (replace(Fragment.whole(f"optimizer.{name}", ()), copied_over=everywhere), tensor)
            for name, tensor in scalars.items()
        ]
        for shard in self.shards:
            for name, tensor in shard.state.items():
                whole = name in self.rule.whole_state
                found.append((state_fragment(shard, name, tuple(tensor.shape) if whole else None), tensor))
        return found

    def gradient_norms(self) -> dict[str, float]:
        """Of each tensor's unscaled gradient, before clipping; to be called within read_gradients, on all ranks."""
        norms = self._squared_gradients().sqrt() / self.loss_scale
        return dict(zip((tensor.name for tensor in self.layout.tensors), norms.tolist(), strict=True))

    def _measure(self, squares: Tensor, before: list[Tensor]) -> Tensor:
        """squares: [tensors], of the unscaled gradients. before: the shards' values, which are overwritten.
        -> [tensors, 3 + factors], of whole tensors: the norms of gradient, update and weights, then the rule's factors.
        A collective where tensors are split."""
        count, names = len(self.layout.tensors), self.rule.factor_names
        table = torch.zeros(count, 3 + len(names), device=self.updates.device)
        values = [p.value for p in self.shards]
        if before:
            torch._foreach_sub_(before, values)
            table[:, 0] = squared_norms(before, self.tensor_numbers, count)
            table[:, 1] = squared_norms(values, self.tensor_numbers, count)
            table[:, 2].index_add_(0, self.tensor_numbers, torch.ones_like(self.tensor_numbers, dtype=table.dtype))
            for column, name in enumerate(names, 3):
                table[:, column].index_add_(0, self.tensor_numbers, self.rule.factors[name].to(table.dtype))
        table = self.layout.sum_over_parts(table)
        factors = table[:, 3:] / table[:, 2:3].clamp(min=1.0)  # all parts of a tensor have the same
        return torch.cat([torch.stack([squares, table[:, 0], table[:, 1]], 1).sqrt(), factors], 1)

    def _squared_gradients(self) -> Tensor:
        """[tensors], of each the sum over all its parts."""
        squares = squared_norms([p.grad for p in self.shards], self.tensor_numbers, len(self.layout.tensors))
        return self.layout.sum_over_parts(squares)

    def _adjust_loss_scale(self) -> None:
        self.good_steps.copy_((self.good_steps + 1) * self.finite)
        grow = (self.good_steps >= self.GROWTH_INTERVAL).float()
        self.dynamic_scale *= torch.where(self.finite > 0, 1.0 + grow, 0.5)
        self.dynamic_scale.clamp_(min=self.SMALLEST_SCALE)
        self.good_steps *= 1.0 - grow


def state_fragment(shard: ParameterShard, name: str, whole_shape: tuple[int, ...] | None) -> Fragment:
    """Where a state tensor belongs: where its shard does or, with a shape of its own, it is whole."""
    full = f"optimizer.{name}.{shard.fragment.name}"
    if whole_shape is None:
        return shard.fragment.renamed(full)
    whole = Fragment.whole(full, whole_shape)
    return replace(whole, copied_over=shard.fragment.copied_over, part=shard.fragment)


def by_settings(shards: list[ParameterShard]) -> Mapping[Settings, list[ParameterShard]]:
    groups: dict[Settings, list[ParameterShard]] = {}
    for shard in shards:
        groups.setdefault(shard.settings, []).append(shard)
    return groups


def squared_norms(parts: list[Tensor], numbers: Tensor, tensors: int) -> Tensor:
    """parts: of tensors; numbers: [parts], which tensor each is of -> [tensors], this rank's sums of squares."""
    squares = torch.zeros(tensors, device=numbers.device)
    if parts:
        squares.index_add_(0, numbers, torch.stack(torch._foreach_norm(parts)).square())
    return squares


def unscale(grads: list[Tensor], step: Step) -> None:
    """Divides by grad_scale, in place; all +0.0, so that nothing spreads, where the step is not finite."""
    for grad in grads:
        grad.masked_fill_(step.finite == 0, 0.0)
    if grads:
        torch._foreach_mul_(grads, step.finite / step.grad_scale)


def or_nothing(factors: Tensor, finite: Tensor) -> Tensor:
    """The factors of what is added to weights or state, or -0.0 where the step is not finite: what +0.0 times -0.0 is
    added to keeps its bits, and -0.0 is one of the values that it may have."""
    return torch.where(finite > 0, factors, -0.0)
