"""RandAugment as google-research/big_vision has it (pp/archive/autoaugment.py, distort_image_with_randaugment).

Other operations than torchvision's, with other strengths: at magnitude 10 color, contrast, brightness and sharpness are
always raised to 1.9, never lowered, solarizing leaves every pixel as it is, and translations and cutouts are counted in
pixels, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pretraining.objectives.image.augmentation import GRAY, affine

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]  # (image, magnitude / 10, rng) -> image
TRANSLATION, CUTOUT = 100, 40  # pixels at magnitude 10; of a cutout half a side


def rand_augment(image: Image.Image, ops: int, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """`ops` operations, each drawn from OPERATIONS with replacement.

    magnitude: 0 to 10. It strengthens most operations and weakens posterizing and solarizing, as there.
    """
    for choice in rng.integers(len(OPERATIONS), size=ops):
        image = OPERATIONS[choice](image, magnitude / 10, rng)
    return image


def _signed(strength: float, rng: np.random.Generator) -> float:
    return strength if rng.random() < 0.5 else -strength


def _plain(change: Callable[[Image.Image], Image.Image]) -> Operation:
    """One without strength."""
    return lambda image, level, rng: change(image)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, level, rng: kind(image).enhance(1.8 * level + 0.1)


def _rotate(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return image.rotate(_signed(30.0 * level, rng), fillcolor=GRAY)


def _posterize(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    bits = int(4 * level)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, int(256 * level))


def _solarize_add(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    added = int(110 * level)
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _shear_x(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return affine(image, (1, _signed(0.3 * level, rng), 0, 0, 1, 0))


def _shear_y(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return affine(image, (1, 0, 0, _signed(0.3 * level, rng), 1, 0))


def _translate_x(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return affine(image, (1, 0, _signed(TRANSLATION * level, rng), 0, 1, 0))


def _translate_y(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return affine(image, (1, 0, 0, 0, 1, _signed(TRANSLATION * level, rng)))


def _cutout(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """A gray square around a center anywhere in the image; what lies outside of it is cut off."""
    half = int(CUTOUT * level)
    x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
    cut = image.copy()
    cut.paste(GRAY, (max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half)))
    return cut


OPERATIONS: tuple[Operation, ...] = (
    _plain(ImageOps.autocontrast),
    _plain(ImageOps.equalize),
    _plain(ImageOps.invert),
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _cutout,
)
