"""Pictures for tests: scikit-learn's digits, real ones, written as PNG files in a folder per class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import prepare


def write_digits(root: Path, count: int | None = None, scale: int = 1) -> Path:
    """root/CLASS/NUMBER.png: 8 x 8 pixels, enlarged `scale` times."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        path = root / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.uint8(image * 255 / 16).repeat(scale, 0).repeat(scale, 1)
        Image.fromarray(grey).save(path)
    return root


def prepare_images(source: Path, output: Path, *overrides: str) -> int:
    """-> exit code."""
    return prepare("corpus=images", f"corpus.inputs=[{source}]", f"output={output}", "num_workers=0", *overrides)


def png(array: np.ndarray) -> bytes:
    """array: uint8 [height, width, 3]."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()
