"""Initial weights that depend on the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pretraining.models.base import Model
from pretraining.models.heads import TokenHead
from pretraining.parallel.fragments import Box
from pretraining.parallel.layers import Layers, box_of

Rule = Callable[[str, Tensor, torch.Generator], None]


def initialize(model: Model, layers: Layers, seed: int, rule: Rule) -> None:
    """Fills every parameter by `rule(name, tensor, generator)`, which is given the whole tensor, even where a rank
    keeps a part of it. Rows of the padded vocabulary, and of ids that a head leaves out, are 0 whatever the rule says:
    no gradient reaches them, and they stay so.

    Each parameter has a generator of its own, keyed by seed and name: weights depend neither on the order in which
    modules were built nor on how they are sharded, nor on how many threads draw. What a rank holds at a time is its own
    part and the tensors that are being drawn.
    """
    heads = [module for module in model.modules() if isinstance(module, TokenHead)]
    unused = {rows for head in heads for rows in head.unused}
    tables = {"token_embedding.weight", *(n for n, p in model.named_parameters() if any(p is h.weight for h in heads))}

    def fill(name: str, parameter: nn.Parameter) -> None:
        shape, box = box_of(parameter, layers.size, layers.rank)
        # drawn in place where it is all of the tensor: a copy would cost as much as half of the drawing
        in_place = box.size == shape and parameter.device.type == "cpu" and parameter.is_contiguous()
        with torch.no_grad():  # of each thread
            whole = parameter.data if in_place else torch.empty(shape)
            rule(name, whole, torch.Generator().manual_seed(named_seed(seed, name)))
            if padded := model.padded_rows(name):
                whole[-padded:] = 0.0
            for start, stop in unused if name in tables else ():
                whole[start:stop] = 0.0
            if not in_place:
                parameter.copy_(whole[box.slices_of(Box((0,) * len(shape), shape))])

    if layers.filled is not None:
        for name, parameter in model.named_parameters():
            fill(name, parameter)
            layers.filled(parameter)
        return
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(lambda entry: fill(*entry), model.named_parameters()):
            pass


def truncated_normal(std: float) -> Rule:
    """BERT's: normal with that standard deviation, truncated at two of them; norms' weights 1, biases 0
    (google-research/bert, modeling.py, create_initializer)."""

    def fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if tensor.ndim == 1:
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        else:
            nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std, generator=generator)

    return fill


def named_seed(seed: int, name: str) -> int:
    """Of the generator that draws what has this name."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63
