"""Initial weights of a class of transformers, by its own rules, from the seed and the modules' names alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data_pipeline.common.errors import InputError
from pretraining.models.initialization import named_seed
from pretraining.parallel.layers import Layers

SHOWN = 5  # names in a message


def initialize_network(network: PreTrainedModel, layers: Layers, seed: int, zeros: dict[str, list[slice]]) -> None:
    """Fills every parameter by transformers' `_init_weights`, module by module, children first. Raises InputError where
    that leaves a parameter empty.

    Each module draws from a generator that its name and the seed make, so that nothing depends on the order. A tensor
    that several modules share is filled by its embedding, or else where it is met first: a head that is tied to the
    embedding would fill the table again, and the padding's row would no longer be zero. zeros: rows that are 0, by the
    parameter's name.

    transformers' rules draw from torch's global generator, which is put back afterwards. They fill whole modules, so
    that here a rank holds the whole model before it is dealt out.
    """
    elsewhere = _filled_elsewhere(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
        for name, module, owner in _children_first(network, network, ""):
            torch.manual_seed(named_seed(seed, name))
            with _left_alone(elsewhere.get(module, [])):
                owner._init_weights(module)
                _fill_as_constructors_do(module)
        parameters = dict(network.named_parameters())
        for name, rows in zeros.items():
            for each in rows:
                parameters[name][each] = 0.0
    empty = [name for name, parameter in parameters.items() if parameter.isnan().any()]
    if empty:
        raise InputError(
            f"transformers' {type(network).__name__} does not initialize {', '.join(empty[:SHOWN])}"
            f"{f' and {len(empty) - SHOWN} more' if len(empty) > SHOWN else ''}: it can only be started from weights"
        )
    if layers.filled is not None:
        for parameter in network.parameters():
            layers.filled(parameter)


def _fill_as_constructors_do(module: nn.Module) -> None:
    """What some classes' rules leave to the constructors: biases, and the weights of OpenAI GPT's projections."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.isnan().all() and name == "bias" and parameter.ndim == 1:
            parameter.zero_()
        elif parameter.isnan().all() and name == "weight" and isinstance(module, Conv1D):
            parameter.normal_(0.0, 0.02)  # transformers/pytorch_utils.py


@contextmanager
def _left_alone(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it transformers' rules skip these."""
    for parameter in parameters:
        vars(parameter)["_is_hf_initialized"] = True  # its own mark
    yield
    for parameter in parameters:
        del vars(parameter)["_is_hf_initialized"]


def _filled_elsewhere(network: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """Module -> those of its parameters that another module fills."""
    modules = [module for module in network.modules() if list(module.parameters(recurse=False))]
    # stable: embeddings first, which know of padding, then the other modules for which every class has a rule
    modules.sort(key=lambda module: (not isinstance(module, nn.Embedding), not isinstance(module, nn.Linear)))
    seen: set[nn.Parameter] = set()
    found: dict[nn.Module, list[nn.Parameter]] = {}
    for module in modules:
        own = list(module.parameters(recurse=False))
        found[module] = [parameter for parameter in own if parameter in seen]
        seen.update(own)
    return found


def _children_first(
    module: nn.Module, owner: PreTrainedModel, name: str
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """(name, module, the innermost model around it, whose rules hold)."""
    for child_name, child in module.named_children():
        inner = child if isinstance(child, PreTrainedModel) else owner
        yield from _children_first(child, inner, f"{name}.{child_name}".lstrip("."))
    yield name, module, owner
