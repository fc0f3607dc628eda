"""Into which group each parameter falls: its weight decay and the scale of its learning rate.

The model says which of its parameters decay and how many layers lie above each, from its structure; names have no
meaning here. A parameter that the model says nothing about is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from data_pipeline.common.errors import InputError
from pretraining.optim.base import Settings

SHOWN = 5  # names in a message


class Grouped(Protocol):
    """What a model has to say (models.base.Model)."""

    def parameter_depths(self) -> Mapping[str, int]:
        """How many layers lie above each parameter."""
        ...

    def decays(self, name: str) -> bool:
        """False for biases, norms and the like."""
        ...


def settings_by_name(
    model: Grouped, names: Iterable[str], weight_decay: float, layer_decay: float = 1.0
) -> dict[str, Settings]:
    """The settings of the parameters of these names.

    The learning rate falls by a factor of layer_decay per layer from the top, as in BEiT (Bao et al. 2022); ELECTRA's
    (Clark et al. 2020) has one factor more below the head: its last block has the square. To be called before ZeRO 3
    empties the parameters, whose shapes decide. Raises InputError where the model does not say at which depth a
    parameter lies.
    """
    names, depths = list(names), model.parameter_depths()
    if missing := [name for name in names if name not in depths]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InputError(
            f"{', '.join(missing[:SHOWN])}{more}: {type(model).__name__}.block_stacks does not say at which depth "
            "these parameters lie, which optimizer.layer_decay and weight decay go by"
        )
    return {
        name: Settings(weight_decay, scale) if model.decays(name) else Settings(0.0, scale, exempt=True)
        for name, scale in ((name, layer_decay ** depths[name]) for name in names)
    }
