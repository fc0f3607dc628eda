"""How images are cut into patches: what image models and image objectives both know."""

from __future__ import annotations

from typing import NamedTuple


class PatchGrid(NamedTuple):
    """Square images of image_size x image_size pixels in patches of patch_size x patch_size."""

    image_size: int
    patch_size: int

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2
