"""Initial weights of a class of transformers, by its own rules, from the seed and the modules' names alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from pretraining.models.initialization import named_seed
from pretraining.parallel.layers import Layers


def initialize_network(network: PreTrainedModel, layers: Layers, seed: int, zeros: dict[str, list[slice]]) -> None:
    """Fills every parameter by transformers' `_init_weights`, module by module, children first.

    Each module draws from a generator that its name and the seed make, so that nothing depends on the order. A tensor
    that several modules share is filled where it is met first: a head that is tied to the embedding would fill the
    table again, and the padding's row would no longer be zero. zeros: rows that are 0, by the parameter's name.

    transformers' rules draw from torch's global generator, which is put back afterwards. They fill whole modules, so
    that here a rank holds the whole model before it is dealt out.
    """
    shared = _shared(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, module, owner in _children_first(network, network, ""):
            torch.manual_seed(named_seed(seed, name))
            owner._init_weights(module)
            for parameter in module.parameters(recurse=False):
                if id(parameter) in shared:
                    vars(parameter)["_is_hf_initialized"] = True  # transformers' own mark: its rules skip such a tensor
        for parameter in network.parameters():
            vars(parameter).pop("_is_hf_initialized", None)
        parameters = dict(network.named_parameters())
        for name, rows in zeros.items():
            for each in rows:
                parameters[name][each] = 0.0
    if layers.filled is not None:
        for parameter in network.parameters():
            layers.filled(parameter)


def _shared(network: nn.Module) -> set[int]:
    """By identity, the parameters that more than one module has."""
    found: list[int] = [id(p) for module in network.modules() for p in module.parameters(recurse=False)]
    return {i for i in found if found.count(i) > 1}


def _children_first(
    module: nn.Module, owner: PreTrainedModel, name: str
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """(name, module, the innermost model around it, whose rules hold)."""
    for child_name, child in module.named_children():
        inner = child if isinstance(child, PreTrainedModel) else owner
        yield from _children_first(child, inner, f"{name}.{child_name}".lstrip("."))
    yield name, module, owner
