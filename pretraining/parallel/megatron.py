"""megatron-core's parallel layers behind the Layers interface.

They hold the weights; activations go through collectives of our own, since megatron-core's need CUDA for sequence
parallelism and for low precision. Weights are left empty, as in PlainLayers.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.parallel.collectives import (
    CopyToTensorRegion,
    GatherFromSequenceRegion,
    JoinSequenceRegion,
    ReduceFromTensorRegion,
    ReduceScatterToSequenceRegion,
    ScatterToSequenceRegion,
)
from pretraining.parallel.marks import mark_sequence_parallel, mark_sharded
from pretraining.parallel.mesh import Axis, Mesh

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about every CUDA extension that is not installed
    from megatron.core import ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding


class _Column(ColumnParallelLinear):
    get_extra_state = nn.Module.get_extra_state  # keys as nn.Linear's

    def forward(self, x: Tensor) -> Tensor:
        enter = GatherFromSequenceRegion if self.sequence_parallel else CopyToTensorRegion
        return F.linear(enter.apply(x, self.tp_group), self.weight, self.bias)


class _Row(RowParallelLinear):
    get_extra_state = nn.Module.get_extra_state

    def forward(self, x: Tensor) -> Tensor:
        leave = ReduceScatterToSequenceRegion if self.sequence_parallel else ReduceFromTensorRegion
        out = leave.apply(F.linear(x, self.weight), self.tp_group)
        # after the sum: otherwise each rank would add the bias once
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Embedding(VocabParallelEmbedding):
    def forward(self, tokens: Tensor) -> Tensor:
        here = (tokens >= self.vocab_start_index) & (tokens < self.vocab_end_index)
        local = (tokens - self.vocab_start_index).masked_fill(~here, 0)  # row 0 stands in, and is zeroed below
        return ReduceFromTensorRegion.apply(F.embedding(local, self.weight) * here[..., None], self.tp_group)


class MegatronLayers:
    """Layers split over the mesh's tensor axis; with sequence_parallel, the sequence region is split along the
    sequence."""

    def __init__(self, mesh: Mesh, sequence_parallel: bool) -> None:
        self.group, self.sequence_parallel = mesh.group(Axis.TENSOR), sequence_parallel
        self.batch_group = mesh.gradient_group
        self.size, self.rank = mesh.size(Axis.TENSOR), mesh.rank(Axis.TENSOR)
        self.filled: Callable[[nn.Parameter], None] | None = None
        self.config = ModelParallelConfig(
            tensor_model_parallel_size=self.size,
            use_cpu_initialization=True,
            sequence_parallel=sequence_parallel,
            perform_initialization=False,  # weights are drawn by name, equal at every tensor-parallel size
            params_dtype=torch.float32,
        )

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        layer = _Column(
            in_features,
            out_features,
            bias=bias,
            gather_output=False,
            config=self.config,
            init_method=_leave_empty,
            tp_group=self.group,
        )
        return _sharded(layer, weight=0, bias=0)

    def row(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        layer = _Row(
            in_features,
            out_features,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
            config=self.config,
            init_method=_leave_empty,
            tp_group=self.group,
        )
        return _sharded(self.mark_sequence_parallel(layer, "bias") if bias else layer, weight=1)

    def embedding(self, num_embeddings: int, features: int) -> nn.Module:
        layer = _Embedding(num_embeddings, features, init_method=_leave_empty, config=self.config, tp_group=self.group)
        return _sharded(layer, weight=0)

    def parameter(self, shape: tuple[int, ...], dim: int) -> nn.Parameter:
        local = list(shape)
        local[dim] //= self.size
        parameter = nn.Parameter(torch.empty(local))
        mark_sharded(parameter, dim)
        return parameter

    def scatter_to_sequence_region(self, x: Tensor) -> Tensor:
        return ScatterToSequenceRegion.apply(x, self.group) if self.sequence_parallel else x

    def gather_from_sequence_region(self, x: Tensor) -> Tensor:
        return JoinSequenceRegion.apply(x, self.group) if self.sequence_parallel else x

    def mark_sequence_parallel(self, module: nn.Module, *names: str) -> nn.Module:
        for name, parameter in module.named_parameters(recurse=False):
            if self.sequence_parallel and (not names or name in names):
                mark_sequence_parallel(parameter)
        return module

    @contextlib.contextmanager
    def model_parallel_rng(self, sequence_only: bool = False) -> Iterator[None]:
        if sequence_only and not self.sequence_parallel:
            yield
            return
        seed = int(torch.randint(2**62, ()))  # the same on all tensor-parallel ranks
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):  # what follows draws as if nothing had been drawn here
            torch.manual_seed(seed + self.rank)
            yield


def _leave_empty(tensor: Tensor) -> Tensor:
    return tensor


def _sharded(layer: nn.Module, **dims: int) -> nn.Module:
    for name, dim in dims.items():
        parameter = getattr(layer, name)
        if parameter is not None:
            mark_sharded(parameter, dim)
    return layer
