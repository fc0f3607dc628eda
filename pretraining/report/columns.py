"""metrics.jsonl as arrays: a million lines in seconds, and thinned so that a page of them opens at once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import open_file
from pretraining.run.metrics import LONGEST_LINE

Array = npt.NDArray[np.float64]
CHUNK = 1 << 16  # numbers of a column that are Python's at a time
MOST_COLUMNS = 500  # a run has some dozens of keys; others would fill the memory
MOST_POINTS = 2000  # of a curve
NUMBERS = {int, float, bool}


@dataclass(frozen=True)
class Column:
    """A key's values over the steps, in the order of the lines: both [lines that have it]. Finite numbers alone."""

    steps: Array
    values: Array

    @property
    def last(self) -> float:
        return float(self.values[-1])


class _Growing:
    """A list of numbers that is kept as arrays but for its end."""

    def __init__(self) -> None:
        self.done: list[Array] = []
        self.steps: list[float] = []
        self.values: list[float] = []

    def append(self, step: float, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) == CHUNK:
            self._store()

    def _store(self) -> None:
        self.done.append(np.array([self.steps, self.values], np.float64))
        self.steps, self.values = [], []

    def column(self) -> Column:
        self._store()
        steps, values = np.concatenate(self.done, 1)
        kept = np.isfinite(values)
        return Column(steps[kept], values[kept])


def read_columns(path: Path) -> dict[str, Column]:
    """The numbers of metrics.jsonl by key; no columns where there is no file. Lines that are torn, or not ours, are
    passed over. Raises InputError where it cannot be read."""
    try:
        import orjson
    except ImportError as error:
        raise InputError("reports need the Python package orjson: pip install 'pretraining[report]'") from error
    found: dict[str, _Growing] = defaultdict(_Growing)
    try:
        with open_file(path, links=False) as file:
            while text := file.readline(LONGEST_LINE):
                try:
                    line = orjson.loads(text)
                    step = line.pop("step")
                except (ValueError, TypeError, AttributeError, KeyError):
                    continue
                if type(step) is int:
                    for key, value in line.items():
                        # of booleans those that are true have a line; type(), since this runs for each of millions
                        if (
                            type(value) in NUMBERS
                            and value is not False
                            and (key in found or len(found) < MOST_COLUMNS)
                        ):
                            found[key].append(step, value)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    columns = {key: growing.column() for key, growing in found.items()}
    return {key: column for key, column in columns.items() if len(column.steps)}


def extremes(column: Column, most: int = MOST_POINTS) -> Column:
    """The column, or the lowest and the highest of each of most / 2 stretches of it: a spike of one line stays."""
    bounds = _bounds(column, most // 2)
    if bounds is None:
        return column
    kept: list[int] = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        stretch = column.values[begin:end]
        kept += sorted({begin + int(stretch.argmin()), begin + int(stretch.argmax())})
    places = np.array(kept)
    return Column(column.steps[places], column.values[places])


def means(column: Column, most: int = MOST_POINTS) -> Column:
    """The column, or the mean of each of most / 2 stretches of it: what a smoothed curve is made of, since extremes
    weigh more than they should."""
    bounds = _bounds(column, most // 2)
    if bounds is None:
        return column
    counts = np.diff(bounds)
    steps, values = (np.add.reduceat(a, bounds[:-1]) / counts for a in (column.steps, column.values))
    return Column(steps, values)


def _bounds(column: Column, stretches: int) -> npt.NDArray[np.int64] | None:
    lines = len(column.steps)
    return None if lines <= 2 * stretches else np.linspace(0, lines, stretches + 1).astype(np.int64)
