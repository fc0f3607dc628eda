"""How images are cut into patches: what image models and image objectives both know. torch is not imported here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class PatchGrid(NamedTuple):
    """Square images of image_size x image_size pixels in patches of patch_size x patch_size."""

    image_size: int
    patch_size: int

    @property
    def side(self) -> int:
        """Patches in a row."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.side**2


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[batch, 3, height, width] -> [batch, patches, 3 x patch_size x patch_size], both in reading order."""
    patches = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify`, for square images."""
    side = math.isqrt(patches.shape[1])
    split = patches.unflatten(1, (side, side)).unflatten(-1, (3, patch_size, patch_size))
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def take_patches(x: Tensor, indices: Tensor) -> Tensor:
    """x: [batch, patches, features]; indices: int [batch, n] -> [batch, n, features]."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))
