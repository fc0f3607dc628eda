"""big_vision's RandAugment against numpy twins of its operations, written from what they do, at every magnitude."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pretraining.config import load_config
from pretraining.objectives.image import big_vision_augment
from pretraining.objectives.image.big_vision_augment import OPERATIONS, rand_augment
from pretraining.objectives.image.classification import RAND_AUGMENT

COLORS = ["AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"]
COLORS += ["Color", "Contrast", "Brightness", "Sharpness"]
NAMES = [*COLORS[:3], "Rotate", *COLORS[3:], "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"]
SIDE = 160


def image() -> np.ndarray:
    """Smooth and with edges, its darkest value above 0 and its brightest below 255: uint8 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    channels = [40 + 150 * x * y, 200 - 120 * y + 20 * (x > 0.5), 90 + 60 * np.sin(9 * x) * np.cos(7 * y)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def blend(degenerate: np.ndarray, pixels: np.ndarray, factor: float) -> np.ndarray:
    low = degenerate.astype(np.float64)
    return np.clip(low + factor * (pixels - low), 0, 255).astype(np.uint8)


def gray(pixels: np.ndarray) -> np.ndarray:
    return (pixels @ np.array([0.2989, 0.587, 0.114])).astype(np.uint8)


def smooth(pixels: np.ndarray) -> np.ndarray:
    """3 x 3 means with the middle five times as heavy; the border stays."""
    kernel, result = np.ones((3, 3)), pixels.copy()
    kernel[1, 1] = 5
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(0, 1))
    result[1:-1, 1:-1] = (windows * kernel).sum((-2, -1)) / 13
    return result


def stretched(channel: np.ndarray) -> np.ndarray:
    low, high = int(channel.min()), int(channel.max())
    return ((channel - float(low)) * 255 / (high - low)).clip(0, 255).astype(np.uint8)


def equalized(channel: np.ndarray) -> np.ndarray:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - counts[np.flatnonzero(counts)[-1]]) // 255
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table = (before + step // 2) // step
    return table.clip(0, 255)[channel].astype(np.uint8)


def twin(name: str, pixels: np.ndarray, magnitude: float) -> np.ndarray:
    level, factor = magnitude / 10, 1.8 * magnitude / 10 + 0.1
    if name in ("AutoContrast", "Equalize"):
        change = stretched if name == "AutoContrast" else equalized
        return np.stack([change(pixels[..., c]) for c in range(3)], axis=-1)
    if name == "Invert":
        return 255 - pixels
    if name == "Posterize":
        shift = 8 - int(4 * level)
        return ((pixels.astype(int) >> shift) << shift).astype(np.uint8)
    if name == "Solarize":
        return np.where(pixels < int(256 * level), pixels, 255 - pixels)
    if name == "SolarizeAdd":
        return np.where(pixels < 128, np.clip(pixels.astype(int) + int(110 * level), 0, 255), pixels).astype(np.uint8)
    if name == "Contrast":
        return blend(np.full_like(pixels, gray(pixels).mean()), pixels, factor)
    degenerate = {"Color": gray(pixels)[..., None], "Brightness": np.zeros_like(pixels), "Sharpness": smooth(pixels)}
    return blend(degenerate[name], pixels, factor)


class Signs:
    """A generator whose sign is fixed; a cutout's center as well."""

    def __init__(self, negative: bool) -> None:
        self.negative = negative

    def random(self) -> float:
        return 0.9 if self.negative else 0.1

    def integers(self, high: int) -> int:
        return high // 4


def applied(name: str, pixels: np.ndarray, magnitude: float, negative: bool = False) -> np.ndarray:
    operation = OPERATIONS[NAMES.index(name)]
    return np.asarray(operation(Image.fromarray(pixels), magnitude / 10, Signs(negative)))  # type: ignore[arg-type]


@pytest.mark.parametrize("magnitude", [10.0, 5.0, 2.0, 0.0])
@pytest.mark.parametrize("name", COLORS)
def test_colors_are_those_of_the_twin(name: str, magnitude: float) -> None:
    """Within the rounding of gray values, which a factor of 1.9 makes 2."""
    found, expected = applied(name, image(), magnitude), twin(name, image(), magnitude)
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_magnitude_10_never_darkens_and_solarizes_nothing() -> None:
    assert np.array_equal(applied("Solarize", image(), 10.0), image())
    assert np.array_equal(applied("Brightness", image(), 10.0), np.clip(image() * 1.9, 0, 255).astype(np.uint8))
    assert all((applied("Brightness", image(), 10.0, negative) >= image()).all() for negative in (False, True))


@pytest.mark.parametrize("negative", [False, True])
def test_geometry_is_that_of_the_twin(negative: bool) -> None:
    """Source of each target pixel: sheared by 0.3, moved by 100 pixels, turned by 30 degrees around the middle."""
    pixels, sign = image(), -1 if negative else 1
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    angle, middle = np.radians(30) * sign, SIDE / 2
    dx, dy = x - middle, y - middle
    sources = {
        "ShearX": (x + 0.3 * sign * y, y),
        "ShearY": (x, y + 0.3 * sign * x),
        "TranslateX": (x + 100 * sign, y),
        "TranslateY": (x, y + 100 * sign),
        "Rotate": (np.cos(angle) * dx - np.sin(angle) * dy + middle, np.sin(angle) * dx + np.cos(angle) * dy + middle),
    }
    for name, (from_x, from_y) in sources.items():
        inside = (from_x >= 0) & (from_x < SIDE) & (from_y >= 0) & (from_y < SIDE)
        columns, rows = (v.astype(int).clip(0, SIDE - 1) for v in (from_x, from_y))
        expected = np.where(inside[..., None], pixels[rows, columns], 128)
        wrong = (np.abs(applied(name, pixels, 10.0, negative).astype(int) - expected) > 12).any(-1)
        assert wrong.mean() < 0.02, (name, wrong.mean())  # at a border a pixel may fall on either side


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_both_directions_are_drawn_alike(name: str) -> None:
    pixels, rng = Image.fromarray(image()[:24, :24]), np.random.default_rng(3)
    operation = OPERATIONS[NAMES.index(name)]
    drawn = Counter(operation(pixels, 0.1, rng).tobytes() for _ in range(2000))
    assert len(drawn) == 2 and min(drawn.values()) / 2000 == pytest.approx(0.5, abs=0.05)


def test_a_cutout_is_a_gray_square_of_80_pixels_cut_off_at_the_border() -> None:
    expected = image()
    expected[0:80, 0:80] = 128  # its center is at 40, 40
    assert np.array_equal(applied("Cutout", image(), 10.0), expected)


def test_every_operation_is_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()

    def record(name: str):  # type: ignore[no-untyped-def]
        return lambda picture, level, rng: (seen.update([name]), picture)[1]

    monkeypatch.setattr(big_vision_augment, "OPERATIONS", tuple(map(record, NAMES)))
    rng, picture = np.random.default_rng(1), Image.fromarray(image())
    for _ in range(4000):
        rand_augment(picture, 2, 10.0, rng)
    assert seen.keys() == set(NAMES) and all(abs(count - 500) < 100 for count in seen.values())


def test_the_recipe_has_it_and_the_default_is_torchvisions() -> None:
    recipe = load_config(["experiment=vit_s16_imagenet", "data.path=x"]).objective
    assert (recipe.rand_augment_kind, recipe.rand_augment_ops, recipe.rand_augment_magnitude) == ("big_vision", 2, 10.0)
    default = load_config(["model=vit_debug", "objective=image_classification", "data.path=x"]).objective
    assert RAND_AUGMENT[recipe.rand_augment_kind] is rand_augment and default.rand_augment_kind == "torchvision"
