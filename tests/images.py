"""Pictures for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.sources.digits import write_digits
from tests.helpers import prepare

__all__ = ["png", "prepare_images", "write_digits"]


def prepare_images(source: Path, output: Path, *overrides: str) -> int:
    """-> exit code."""
    return prepare("corpus=images", f"corpus.inputs=[{source}]", f"output={output}", "num_workers=0", *overrides)


def png(array: np.ndarray) -> bytes:
    """array: uint8 [height, width, 3]."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()
