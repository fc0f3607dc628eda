"""scikit-learn's handwritten digits as PNG files, a folder per class: `python -m data_pipeline.sources.digits DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def write_digits(root: Path, count: int | None = None) -> Path:
    """The first `count` (None: all 1797), 8 x 8 pixels, as root/CLASS/NUMBER.png."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        path = root / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * 255 / 16)).save(path)
    return root


if __name__ == "__main__":
    print(write_digits(Path(sys.argv[1])))
