"""The layers that models are built from: here plain torch; a tensor-parallel set has the same interface.

A model file asks its `Layers` object for column-, row- and vocabulary-parallel layers and never learns
whether they are sharded. Same names and, for one seed, same initial weights at every tensor-parallel size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from pretraining.parallel.fragments import Box
from pretraining.parallel.marks import split_dim

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Layers(Protocol):
    """What lies between `scatter_to_sequence_region` and `gather_from_sequence_region` may be split along the sequence
    (sequence parallelism; Korthikanti et al. 2022, section 4.2.2)."""

    size: int  # ranks that share each layer, and which of them this is
    rank: int
    group: ProcessGroup | None
    batch_group: ProcessGroup | None  # the ranks among which a global batch is dealt; None where there is one
    # Told of each parameter as soon as it is initialized, in the model's order: an engine that deals them out does so
    # at once, and no rank ever holds the whole model. None: nobody waits, and several may be drawn at a time.
    filled: Callable[[nn.Parameter], None] | None

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        """Linear; each rank makes its part of the output features, whole heads first to last."""
        ...

    def row(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        """Linear of features that a column layer made; its output is whole."""
        ...

    def embedding(self, num_embeddings: int, features: int) -> nn.Module:
        """A table whose rows are split."""
        ...

    def parameter(self, shape: tuple[int, ...], dim: int) -> nn.Parameter:
        """A parameter split along `dim`."""
        ...

    def scatter_to_sequence_region(self, x: Tensor) -> Tensor:
        """x: [batch, length, hidden], before the first block."""
        ...

    def gather_from_sequence_region(self, x: Tensor) -> Tensor:
        """After the last block: what follows is computed identically on every rank."""
        ...

    def mark_sequence_parallel(self, module: nn.Module) -> nn.Module:
        """Marks `module`, a norm for example, as used within the sequence region with weights that every rank has: each
        rank sees its part of the sequence alone, so that their gradients are summed over the ranks."""
        ...

    def model_parallel_rng(self, sequence_only: bool = False) -> contextlib.AbstractContextManager:
        """Within it each rank draws random numbers of its own, since activations are split by features or, with
        sequence_only, where they are split along the sequence."""
        ...


class EmptyLinear(nn.Linear):
    """Its weights hold whatever memory held: a model initializes all of them by name (models.base.Model.initialize).
    nn.utils.skip_init does so by way of the meta device, whose random numbers load torch's compiler: 1.3 s of CPU.
    """

    def reset_parameters(self) -> None:
        pass


class EmptyEmbedding(nn.Embedding):
    """As EmptyLinear."""

    def reset_parameters(self) -> None:
        pass


class PlainLayers:
    """torch alone."""

    size, rank = 1, 0
    group: ProcessGroup | None = None

    def __init__(self, batch_group: ProcessGroup | None = None) -> None:
        self.batch_group = batch_group
        self.filled: Callable[[nn.Parameter], None] | None = None

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return EmptyLinear(in_features, out_features, bias)

    def row(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return EmptyLinear(in_features, out_features, bias)

    def embedding(self, num_embeddings: int, features: int) -> nn.Module:
        return EmptyEmbedding(num_embeddings, features)

    def parameter(self, shape: tuple[int, ...], dim: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape))

    def scatter_to_sequence_region(self, x: Tensor) -> Tensor:
        return x

    def gather_from_sequence_region(self, x: Tensor) -> Tensor:
        return x

    def mark_sequence_parallel(self, module: nn.Module) -> nn.Module:
        return module

    def model_parallel_rng(self, sequence_only: bool = False) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


def box_of(parameter: Tensor, size: int, rank: int) -> tuple[tuple[int, ...], Box]:
    """-> (global shape, the box of it that this rank's `parameter` is), for layers shared by `size` ranks."""
    shape, offset = list(parameter.shape), [0] * parameter.ndim
    dim = split_dim(parameter)
    if dim is not None:
        offset[dim] = rank * shape[dim]
        shape[dim] *= size
    return tuple(shape), Box(tuple(offset), tuple(parameter.shape))
