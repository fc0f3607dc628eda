"""Adafactor (Shazeer and Stern 2018, algorithms 4 to 6) on fragments: all statistics are those of the whole tensor.

A tensor of two or more dimensions keeps the means of its squared gradients over its last and over its last but one
dimension, as transformers' Adafactor does; for a matrix these are its rows' and columns'. Mesh TensorFlow's, which
trained T5 (optimize.py, _factored_dims), takes the two largest dimensions, and factors nothing where the second largest
is below 128 (min_dim_size_to_factor; t5x has 128 too). All tensors of the families here are vectors and matrices: what
differs from it is a matrix with a side below 128, such as T5's relative biases or BERT's table of two segments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretraining.optim.base import ParameterShard, Step, UpdateRule, or_nothing, squared_norms, unscale
from pretraining.optim.config import AdafactorConfig
from pretraining.parallel.fragments import Box, Fragment, Shape
from pretraining.parallel.layout import Layout, TensorLayout

# Elements that are worked on at a time: what stays in a core's cache; on a GPU, few launches.
CPU_PATCH, GPU_PATCH = 2**20, 2**24

ROW, COLUMN = "exp_avg_sq_row", "exp_avg_sq_col"


@dataclass
class Patch:
    """A box of a factored tensor within a shard: elements [start, stop) of the shard, of shape [..., n, m].

    rows: [..., n, 1] and columns: [..., 1, m] are its part of the vector of all statistics: views, not copies.
    """

    shard: int
    start: int
    stop: int
    rows: Tensor
    columns: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        shape = (*self.rows.shape[:-1], self.columns.shape[-1])
        return tensor.view(-1)[self.start : self.stop].view(shape)


class Adafactor(UpdateRule):
    """The gradients are overwritten by the update. One reduction sums all rows, columns and squared parameters,
    a second one the squared updates."""

    whole_state = frozenset((ROW, COLUMN))
    factor_names = ("update_clipping",)

    def __init__(self, config: AdafactorConfig) -> None:
        self.config = config
        self.weight_decay, self.layer_decay = config.weight_decay, config.layer_decay

    def initial_state(self, shard: ParameterShard) -> dict[str, Tensor]:
        state = {
            name: shard.value.new_zeros(shape)
            for name, shape in zip((ROW, COLUMN), factor_shapes(shard.fragment.shape), strict=False)
        }
        state = state or {"exp_avg_sq": torch.zeros_like(shard.value)}
        return state if self.config.beta1 is None else state | {"exp_avg": torch.zeros_like(shard.value)}

    def attach(self, shards: list[ParameterShard], layout: Layout, device: torch.device) -> None:
        self.statistics = Statistics(shards, layout, device)
        self.factored = [p for p in shards if ROW in p.state]
        self.unfactored = [p for p in shards if ROW not in p.state]
        self.lr_scales = torch.tensor([p.settings.lr_scale for p in shards], device=device)
        self.decays = torch.tensor([p.settings.weight_decay for p in shards], device=device)

    def update(self, shards: list[ParameterShard], step: Step, layout: Layout) -> None:
        statistics, grads = self.statistics, [p.grad for p in shards]
        unscale(grads, step)
        mean_squares = statistics.measure(shards, self.config.scale_parameter)
        # beta2 of step t is 1 - t ** decay_rate (section 7.2)
        fresh = step.finite * (step.updates + 1.0) ** self.config.decay_rate
        # Before the first update the averages are zero and have no inverse; one is added where the step is not finite.
        safe = 1.0 - step.finite
        self._average_factored(fresh, safe)
        self._average_unfactored(fresh, safe)
        statistics.precondition(shards)
        squares = layout.sum_over_parts(squared_norms(grads, statistics.numbers, len(layout.tensors)))
        if shards:
            update_rms = (squares / statistics.numels).sqrt()[statistics.numbers]
            decays = self.decays * step.taking_part[statistics.numbers]
            self._apply(shards, self._alpha(mean_squares, step), update_rms, decays, step.finite)

    def _alpha(self, mean_squares: Tensor, step: Step) -> Tensor:
        """mean_squares: [shards], of the parameters -> [shards], the step sizes (algorithm 6, lines 2, 3)."""
        rho, t = torch.full_like(step.updates, step.lr), step.updates + 1.0
        if self.config.relative_step:
            rho = torch.minimum(rho, t.rsqrt())
        if self.config.warmup_init:
            rho = torch.minimum(rho, 1e-6 * t)
        alpha = rho * self.lr_scales
        return alpha * mean_squares.sqrt().clamp(min=self.config.eps[1]) if self.config.scale_parameter else alpha

    def _average_factored(self, fresh: Tensor, safe: Tensor) -> None:
        """Averages the rows' and columns' means into the state, and makes the factors of the updates from it
        (algorithm 4, lines 5 to 7)."""
        statistics = self.statistics
        statistics.vector.add_(self.config.eps[0]).mul_(fresh)
        rows, columns = [p.state[ROW] for p in self.factored], [p.state[COLUMN] for p in self.factored]
        if not rows:
            return
        torch._foreach_mul_(rows + columns, 1.0 - fresh)
        torch._foreach_add_(rows + columns, statistics.rows + statistics.columns)
        for row, out, count in zip(rows, statistics.rows, statistics.row_counts, strict=True):
            torch.div(row, row[..., :count].mean(-1, keepdim=True) + safe, out=out)
        torch._foreach_copy_(statistics.columns, columns)
        statistics.vector.add_(safe).rsqrt_()

    def _average_unfactored(self, fresh: Tensor, safe: Tensor) -> None:
        grads, averages = [p.grad for p in self.unfactored], [p.state["exp_avg_sq"] for p in self.unfactored]
        if not grads:
            return
        squares = torch._foreach_mul(grads, grads)
        torch._foreach_add_(squares, self.config.eps[0])
        torch._foreach_mul_(squares, fresh)
        torch._foreach_mul_(averages, 1.0 - fresh)
        torch._foreach_add_(averages, squares)
        factors = torch._foreach_add(averages, safe)
        torch._foreach_rsqrt_(factors)
        torch._foreach_mul_(grads, factors)

    def _apply(
        self, shards: list[ParameterShard], alpha: Tensor, update_rms: Tensor, decays: Tensor, finite: Tensor
    ) -> None:
        """alpha, update_rms, decays: [shards]. Clips the updates (algorithm 4, line 9), averages and subtracts them."""
        values, updates = [p.value for p in shards], [p.grad for p in shards]
        if self.weight_decay:
            torch._foreach_mul_(values, list((1.0 - finite * alpha * decays).unbind()))
        clipping = (update_rms / self.config.clip_threshold).clamp(min=1.0)
        self.factors = {"update_clipping": clipping}
        rates = alpha / clipping
        if self.config.beta1 is None:
            torch._foreach_addcmul_(values, updates, list(or_nothing(-rates, finite).unbind()))
            return
        averages = [p.state["exp_avg"] for p in shards]
        fresh = or_nothing(rates * (1.0 - self.config.beta1), finite)
        torch._foreach_mul_(averages, 1.0 - finite * (1.0 - self.config.beta1))
        torch._foreach_addcmul_(averages, updates, list(fresh.unbind()))
        torch._foreach_copy_(updates, averages)
        for update in updates:
            update.masked_fill_(finite == 0, 0.0)
        torch._foreach_sub_(values, updates)


class Statistics:
    """One vector that holds for every tensor, in the layout's order, the sum of its squared values, its squared
    gradient's row sums and its column sums.

    Later in a step the sums become means, then what is added to the averages, then the factors of the updates.
    rows, columns: the whole tensor's part of the vector for each factored shard, shaped as the state; views.
    row_counts: of these rows so many are no padding of the vocabulary, which no mean may see.
    numbers: [shards], their tensors. numels: [tensors].
    """

    def __init__(self, shards: list[ParameterShard], layout: Layout, device: torch.device) -> None:
        self.layout, published = layout, [tensor.published_shape for tensor in layout.tensors]
        self.lengths = [1 + sum(map(math.prod, factor_shapes(tensor.shape))) for tensor in layout.tensors]
        self.begins = [0, *itertools.accumulate(self.lengths)]
        self.vector = torch.zeros(self.begins.pop(), device=device)
        self.shares = torch.cat([torch.empty(0), *map(shares, layout.tensors)]).to(device)
        self.numels = torch.tensor([math.prod(s) for s in published], dtype=torch.float32, device=device)
        self.numbers = torch.tensor([p.tensor for p in shards], dtype=torch.long, device=device)
        self.value_slots = torch.tensor(self.begins, dtype=torch.long, device=device)[self.numbers]
        self.rows: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.row_counts: list[int] = []
        self.patches: list[Patch] = []
        for number, shard in enumerate(shards):
            if len(shard.fragment.shape) > 1:
                self._add(number, shard)
        self.buffer = torch.empty(max((p.stop - p.start for p in self.patches), default=0), device=device)

    def _add(self, number: int, shard: ParameterShard) -> None:
        row_shape, column_shape = factor_shapes(shard.fragment.shape)
        sizes = [1, math.prod(row_shape), math.prod(column_shape)]
        begin = self.begins[shard.tensor]
        _, rows, columns = self.vector[begin : begin + sum(sizes)].split(sizes)
        self.rows.append(rows.view(row_shape))
        self.row_counts.append(self.layout.tensors[shard.tensor].published_shape[-2])
        self.columns.append(columns.view(column_shape))
        limit = CPU_PATCH if self.vector.device.type == "cpu" else GPU_PATCH
        for box, start in patch_boxes(shard.fragment, limit):
            *lead, row, column = box.slices_of(Fragment.whole("", shard.fragment.shape).box)
            self.patches.append(
                Patch(
                    number,
                    start,
                    start + box.numel,
                    self.rows[-1][(*lead, row, None)],
                    self.columns[-1][(*lead, None, column)],
                )
            )

    def measure(self, shards: list[ParameterShard], with_values: bool) -> Tensor:
        """Means over the whole tensors -> [shards], that of the squared values."""
        self.vector.zero_()
        for patch in self.patches:
            grad = patch.of(shards[patch.shard].grad)
            squares = torch.mul(grad, grad, out=self.buffer[: grad.numel()].view(grad.shape))
            patch.rows += squares.sum(-1, keepdim=True)
            patch.columns += squares.sum(-2, keepdim=True)
        if with_values and shards:
            norms = torch.stack(torch._foreach_norm([p.value for p in shards]))
            self.vector.index_add_(0, self.value_slots, norms.square())
        self.layout.sum_over_parts(self.vector, self.lengths)
        return self.vector.mul_(self.shares)[self.value_slots]

    def precondition(self, shards: list[ParameterShard]) -> None:
        """Multiplies the factored gradients by the factors that the vector then holds (algorithm 4, lines 7, 8)."""
        for patch in self.patches:
            patch.of(shards[patch.shard].grad).mul_(patch.columns).mul_(patch.rows)


def factor_shapes(shape: Shape) -> tuple[Shape, ...]:
    """Shapes of the row and column statistics; none for a tensor of less than two dimensions."""
    return (shape[:-1], shape[:-2] + shape[-1:]) if len(shape) > 1 else ()


def shares(tensor: TensorLayout) -> Tensor:
    """What makes means of one tensor's sums. Padded rows are 0: sums do not see them, and counts must not."""
    shape = tensor.published_shape
    means = [torch.full((1,), 1.0 / math.prod(shape))]
    for size, count in zip(factor_shapes(tensor.shape), (shape[-1:], shape[-2:-1]), strict=False):
        means.append(torch.full((math.prod(size),), 1.0 / count[0]))
    return torch.cat(means)


def patch_boxes(fragment: Fragment, limit: int) -> Iterator[tuple[Box, int]]:
    """The boxes of a fragment, cut between rows to about `limit` elements, each with where it begins within it."""
    row = max(1, fragment.box.size[-1])
    step = max(1, limit // row) * row
    start = fragment.start
    while start < fragment.stop:
        stop = min(fragment.stop, (start // step + 1) * step)
        for box, begin in replace(fragment, start=start, stop=stop).boxes():
            yield box, start - fragment.start + begin
        start = stop
