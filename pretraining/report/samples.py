"""What a run's model made of validation samples, as the run left it in run_dir/samples/step_N/."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

from data_pipeline.common.files import read_bytes
from pretraining.run.showing import SAMPLES
from pretraining.run.weights_and_biases import TEXT

MOST_SHOWN = 6  # evaluations of a run, newest first
LONGEST_TEXT = 20_000  # bytes
LARGEST_PICTURE = 1 << 20  # bytes
_FOLDER = re.compile(r"step_(\d{1,15})")


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """[{step, text, pictures: [(name, data URL)]}], the newest evaluations first. What is no plain file of a fitting
    size is left out."""
    folder = run_dir / SAMPLES
    if not folder.is_dir():
        return []
    steps = sorted((int(match[1]), name) for name in os.listdir(folder) if (match := _FOLDER.fullmatch(name)))
    return [_sample(folder / name, step) for step, name in reversed(steps[-MOST_SHOWN:])]


def _sample(folder: Path, step: int) -> dict[str, Any]:
    text = (_content(folder / TEXT, LONGEST_TEXT) or b"").decode(errors="replace")
    pictures = []
    for name in sorted(name for name in os.listdir(folder) if name.endswith(".png")):
        content = _content(folder / name, LARGEST_PICTURE)
        if content is not None and content.startswith(b"\x89PNG"):
            pictures.append((name, f"data:image/png;base64,{base64.b64encode(content).decode()}"))
    return {"step": step, "text": text, "pictures": pictures}


def _content(path: Path, limit: int) -> bytes | None:
    try:
        return read_bytes(path, limit, links=False)
    except OSError:
        return None
