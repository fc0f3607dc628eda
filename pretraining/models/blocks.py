"""The one loop over a model's blocks, and how a model says where its parameters lie along it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Part = nn.Module | nn.Parameter


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *context: object, checkpointing: bool) -> Tensor:
    """x: [batch, length, hidden] through the blocks in order, each called as block(x, *context).

    checkpointing: keep a block's input alone and compute the block again in the backward pass (Chen et al. 2016,
    "Training Deep Nets with Sublinear Memory Cost"). The random state is restored for it, so that dropout masks agree.
    """
    for block in blocks:
        x = checkpoint(block, x, *context, use_reentrant=False) if checkpointing else block(x, *context)
    return x


@dataclass(frozen=True)
class BlockStack:
    """A stack of blocks with what lies around it.

    blocks: in the order in which they run; one that runs several times stands there as often. inputs: what makes the
    first block's input, or acts within every block from the first on. outputs: what follows the last block. A part may
    stand in several stacks.
    """

    blocks: nn.ModuleList | Sequence[nn.Module]
    inputs: tuple[Part | None, ...] = ()
    outputs: tuple[Part | None, ...] = ()

    def layers(self) -> list[tuple[int, Part]]:
        """(how many layers lie above it, part) of every part: outputs are at the top, inputs below all blocks."""
        count = len(self.blocks)
        found = [(0, part) for part in self.outputs]
        found += [(count - i, block) for i, block in enumerate(self.blocks)]
        found += [(count + 1, part) for part in self.inputs]
        return [(above, part) for above, part in found if part is not None]


def depths_by_name(model: nn.Module, stacks: Iterable[BlockStack], heads: Iterable[nn.Module]) -> dict[str, int]:
    """How many layers lie above each parameter of the stacks and heads, in its own stack; parameters in none of these
    are left out. One that several stacks read, or several layers share, counts for the deepest, a tied one for the
    lower of its two places.

    As in microsoft/unilm, beit/optim_factory.py (Bao et al. 2022), except for the relative bias, which is shared by all
    blocks: there it is at the top, here as in timm's beit.py at the bottom, where it begins to act.
    """
    above: dict[int, int] = {}  # by identity, since tied parameters have several names
    layers = [layer for stack in stacks for layer in stack.layers()]
    for number, part in [*((0, head) for head in heads), *layers]:
        for parameter in [part] if isinstance(part, nn.Parameter) else part.parameters():
            above[id(parameter)] = max(number, above.get(id(parameter), 0))
    return {name: above[id(p)] for name, p in model.named_parameters() if id(p) in above}
