"""What the structure of a class of transformers says of its parameters: which decay, and how deep they lie."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pretraining.models.blocks import BlockStack

PROJECTIONS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D)
Place = tuple[int, ...]  # of a module in the tree: which child of the root, which child of that, ...


def decays(network: nn.Module, name: str) -> bool | None:
    """Whether weight decay applies to the parameter of this name: to tables and projections, not to norms, biases and
    single tokens. None where the structure does not say: for a matrix of a module of unknown kind."""
    module_name, _, own = name.rpartition(".")
    parameter = network.get_parameter(name)
    if parameter.ndim < 2 or parameter.numel() == parameter.shape[-1] or own.endswith("bias"):
        return False
    return True if own == "weight" and isinstance(network.get_submodule(module_name), PROJECTIONS) else None


def block_stacks(network: PreTrainedModel, early: Collection[str]) -> list[BlockStack]:
    """The outermost lists of blocks; around each the modules that lie nearest to it in the tree. What is made before
    the blocks is below them, what is made after them above, except for the modules that `early` names. Heads, which
    lie outside of the class's base model, are above."""
    places = dict(_places(network, ()))
    lists = {place: module for place, module in places.items() if isinstance(module, nn.ModuleList)}
    below: dict[Place, list[nn.Module]] = {place: [] for place in lists}
    above: dict[Place, list[nn.Module]] = {place: [] for place in lists}
    body = set(network.base_model.modules())
    names = {module: name.rpartition(".")[2] for name, module in network.named_modules()}
    for place, module in places.items():
        if place in lists or not list(module.parameters(recurse=False)):
            continue
        nearest = max((_shared(place, other) for other in lists), default=0)
        for other in (other for other in lists if _shared(place, other) == nearest):
            acts_before = module in body and (place < other or names[module] in early)
            side = below if acts_before else above
            side[other].append(module)
    return [BlockStack(module, tuple(below[place]), tuple(above[place])) for place, module in lists.items()]


def _places(module: nn.Module, place: Place) -> Iterator[tuple[Place, nn.Module]]:
    """Every module outside of the lists of blocks, and the lists."""
    yield place, module
    if not isinstance(module, nn.ModuleList):
        for number, child in enumerate(module.children()):
            yield from _places(child, (*place, number))


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many steps from the root both go together."""
    steps = 0
    while steps < min(len(first), len(second)) and first[steps] == second[steps]:
        steps += 1
    return steps
