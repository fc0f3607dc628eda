"""Views of an image for training and evaluation: Pillow and numpy, driven by the sample's own generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

Pixels = npt.NDArray[np.uint8]  # [3, height, width]
_BICUBIC = Image.Resampling.BICUBIC
GRAY = (128, 128, 128)
_CROP_ATTEMPTS = 10


def pixels(image: Image.Image) -> Pixels:
    """-> uint8 [3, height, width]."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def center_crop(image: Image.Image, size: int, fraction: float) -> Image.Image:
    """The middle square that is `fraction` of the shorter side, at size x size (He et al. 2015: 224 of 256).

    It lies on whole pixels, and is cut out before it is scaled, as transformers' PerceiverImageProcessor does it: an
    exported model's processor gives the same pixels.
    """
    side = max(1, int(size / (size / fraction) * min(image.size)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), _BICUBIC)


def random_resized_crop(
    image: Image.Image, size: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> Image.Image:
    """A crop at size x size whose part of the area is uniform in `scale` and whose width / height is log-uniform in
    `ratio` (Szegedy et al. 2014, "Going deeper with convolutions", section 6). If none fits, the largest square in the
    middle."""
    width, height = image.size
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(scale[0], scale[1]) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return image.resize((size, size), _BICUBIC, box=(left, top, left + w, top + h))
    side = min(image.size)
    x, y = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), _BICUBIC, box=(x, y, x + side, y + side))


def random_flip(image: Image.Image, probability: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image) if rng.random() < probability else image


def rand_augment(image: Image.Image, ops: int, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """`ops` operations, each drawn from OPERATIONS with replacement (Cubuk et al. 2019, "RandAugment", figure 2).

    magnitude: 0 to 10, how strong. Each operation's range is that of torchvision.transforms.RandAugment.
    """
    for choice in rng.integers(len(OPERATIONS), size=ops):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        image = OPERATIONS[choice](image, magnitude / 10, sign)
    return image


Operation = Callable[[Image.Image, float, float], Image.Image]  # (image, strength 0 to 1, sign) -> image


def _identity(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return ImageOps.equalize(image)


def _rotate(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return image.rotate(sign * 30.0 * strength, fillcolor=GRAY)


def _solarize(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return ImageOps.solarize(image, round(256 * (1.0 - strength)))


def _posterize(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * strength))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength, sign: kind(image).enhance(1.0 + sign * 0.9 * strength)


def affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, fillcolor=GRAY)


def _shear_x(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return affine(image, (1, sign * 0.3 * strength, 0, 0, 1, 0))


def _shear_y(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return affine(image, (1, 0, 0, sign * 0.3 * strength, 1, 0))


def _translate_x(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return affine(image, (1, 0, sign * strength * image.width * 150 / 331, 0, 1, 0))


def _translate_y(image: Image.Image, strength: float, sign: float) -> Image.Image:
    return affine(image, (1, 0, 0, 0, 1, sign * strength * image.height * 150 / 331))


OPERATIONS: tuple[Operation, ...] = (
    _identity,
    _auto_contrast,
    _equalize,
    _rotate,
    _solarize,
    _posterize,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
)


def mixup(first: Pixels, second: Pixels, weight: float) -> Pixels:
    """weight x first + (1 - weight) x second, rounded (Zhang et al. 2017, "mixup", equation 1)."""
    return np.rint(weight * first.astype(np.float32) + (1.0 - weight) * second.astype(np.float32)).astype(np.uint8)


def cutmix(first: Pixels, second: Pixels, weight: float, rng: np.random.Generator) -> tuple[Pixels, float]:
    """`first` with a box of `second` pasted over it -> (pixels, the part of `first` that is left).

    The box's sides are sqrt(1 - weight) of the image's, its center is uniform, and what lies outside the image is cut
    off (Yun et al. 2019, "CutMix", section 3.1).
    """
    _, height, width = first.shape
    side = math.sqrt(1.0 - weight)
    x, y = int(rng.integers(width)), int(rng.integers(height))
    half_width, half_height = int(width * side) // 2, int(height * side) // 2
    left, right = max(x - half_width, 0), min(x + half_width, width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    mixed = first.copy()
    mixed[:, top:bottom, left:right] = second[:, top:bottom, left:right]
    return mixed, 1.0 - (right - left) * (bottom - top) / (width * height)
