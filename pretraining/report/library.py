"""uPlot, the plotting library of the page, as the package uplot-python ships it: nothing of it is imported."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from data_pipeline.common.errors import InputError

PACKAGE = "uplot-python"
SCRIPT, STYLE = "uplot/static/uPlot.iife.js", "uplot/static/uPlot.min.css"


def library_file(name: str) -> str:
    """The text of one of the package's files. Raises InputError where it is not installed, or has no such file."""
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(name)))
        return path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError) as error:
        raise InputError(
            f"the page needs the Python package {PACKAGE}, which ships {name}: pip install 'pretraining[report]'"
        ) from error
