"""Dropout that ends before training does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def dropout_ends(step: int, steps: int, until: float) -> contextlib.AbstractContextManager[object]:
    """Around forward and backward of `step`, counted from 1: beyond the share `until` of all steps nothing is dropped.
    A function of the step, so that a resumed run and every layout do the same."""
    return _WithoutDropout() if step > until * steps else contextlib.nullcontext()


class _WithoutDropout(TorchFunctionMode):
    """Every dropout passes its input on, transformers' too, which keeps its rates in numbers all over. Not `eval()`,
    which would end label smoothing as well. What activation checkpointing computes again in a backward does not see
    the mode: config.py refuses both together."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func is F.dropout:
            return args[0] if args else named["input"]
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args  # the rate is the fifth, or named
            named |= {} if len(args) > 4 else {"dropout_p": 0.0}
        return func(*args, **named)
