"""Initial weights that depend on the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretraining.models.heads import TokenHead
from pretraining.parallel.fragments import Box
from pretraining.parallel.layers import Layers, box_of


def initialize(
    model: nn.Module, layers: Layers, seed: int, rule: Callable[[str, Tensor, torch.Generator], None]
) -> None:
    """Fills every parameter by `rule(name, tensor, generator)`, which is given the whole tensor, even where a rank
    keeps a part of it. Rows of ids that a head leaves out are 0, as those of the padded vocabulary are: no gradient
    reaches them, and they stay so.

    Each parameter has a generator of its own, keyed by seed and name: weights depend neither on the order in which
    modules were built nor on how they are sharded.
    """
    heads = [module for module in model.modules() if isinstance(module, TokenHead)]
    unused = {rows for head in heads for rows in head.unused}
    tables = {"token_embedding.weight", *(n for n, p in model.named_parameters() if any(p is h.weight for h in heads))}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)
            shape, box = box_of(parameter, layers.size, layers.rank)
            whole = torch.empty(shape)
            rule(name, whole, generator)
            for start, stop in unused if name in tables else ():
                whole[start:stop] = 0.0
            parameter.copy_(whole[box.slices_of(Box((0,) * len(shape), shape))])
