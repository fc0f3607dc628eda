"""What parameters say of themselves to layouts: the attributes by which megatron-core and DeepSpeed know a shard.

Both libraries set and read them on the parameters themselves; this is the only place that does so here.
"""

from __future__ import annotations

from torch import Tensor, nn


def mark_sharded(parameter: nn.Parameter, dim: int) -> None:
    """The parameter is this rank's part of a tensor that tensor parallelism splits along `dim`."""
    _set(parameter, tensor_model_parallel=True, partition_dim=dim, partition_stride=1)


def split_dim(parameter: Tensor) -> int | None:
    """Along which dimension tensor parallelism splits it; None where every rank has all of it."""
    marks = vars(parameter)
    return marks["partition_dim"] if marks.get("tensor_model_parallel") else None


def mark_sequence_parallel(parameter: nn.Parameter) -> None:
    """Every rank has the parameter, but sees a part of the sequence alone: its gradient is to be summed over them."""
    _set(parameter, sequence_parallel=True)


def is_sequence_parallel(parameter: nn.Parameter) -> bool:
    return bool(vars(parameter).get("sequence_parallel"))


def _set(parameter: nn.Parameter, **marks: bool | int) -> None:
    for name, value in marks.items():
        setattr(parameter, name, value)
