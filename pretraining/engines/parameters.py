"""The names of a module's parameters, and where this rank's lie in the whole tensors."""

from __future__ import annotations

from torch import nn

from pretraining.models.base import Model
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.layers import box_of
from pretraining.parallel.layout import Layout, TensorLayout
from pretraining.parallel.mesh import Axis, Mesh


def parameter_name(name: str) -> str:
    """A parameter's name within the model, given that within the LossModule."""
    return name.removeprefix("model.")


class ParameterLayout:
    """Where this rank's parameters lie in the whole tensors. To be made before ZeRO 3, which empties them.

    names: in the order of the Layout, those that are split over tensor-parallel ranks first. shapes: of the whole
    tensors, in that order.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], model: Model, mesh: Mesh) -> None:
        self._mesh = mesh
        self._padded_rows = {name: model.padded_rows(name) for name in parameters}
        self._found = {
            name: box_of(p, mesh.size(Axis.TENSOR), mesh.rank(Axis.TENSOR)) for name, p in parameters.items()
        }
        self.names = tuple(sorted(self._found, key=lambda name: not self._is_split(name)))
        self.shapes = tuple(self._found[name][0] for name in self.names)

    def _is_split(self, name: str) -> bool:
        shape, box = self._found[name]
        return shape != box.size

    def for_optimizer(self, dealt: bool) -> Layout:
        """dealt: the tensors, or flat ranges of them, are dealt over the data-parallel ranks as well."""
        dealt_over = frozenset({Axis.DATA}) if dealt else frozenset()
        return Layout(
            tuple(
                TensorLayout(
                    name,
                    shape,
                    dealt_over | ({Axis.TENSOR} if self._is_split(name) else set()),
                    self._padded_rows[name],
                )
                for name, shape in zip(self.names, self.shapes, strict=True)
            ),
            self._mesh,
        )

    def whole(self, name: str) -> Fragment:
        """All that this rank has of the tensor, before an engine deals it over the data-parallel ranks."""
        shape, box = self._found[name]
        copied_over = frozenset({Axis.DATA}) if self._is_split(name) else frozenset(Axis)
        return Fragment(name, shape, box, 0, box.numel, copied_over)
