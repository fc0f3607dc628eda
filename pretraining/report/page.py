"""Runs as one page: HTML with its script, its style and its data in it, so that it opens anywhere and asks nobody."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from pretraining.report.columns import MOST_POINTS, Array, Column, extremes, means
from pretraining.report.library import SCRIPT, STYLE, library_file
from pretraining.report.runs import UNITS, Run, differing, is_better_higher
from pretraining.report.samples import read_samples
from pretraining.run.json_lines import Entry

Json = dict[str, Any]
AXIS_POINTS = 1000
SHARED_POINTS = 16_000  # of a curve over all runs: many runs have fewer each
LONGEST_VALUE = 300  # characters of a config's value, or a host's name
TITLES = {
    "loss": "Training loss",
    "valid_loss": "Validation loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
    "tokens_per_second": "Tokens per second",
    "images_per_second": "Images per second",
    "mfu": "Model FLOPs utilization",
    "tflops": "TFLOP/s of one rank",
    "step_seconds": "Seconds per step",
    "data_wait": "Share of time waiting for data",
    "goodput": "Goodput",
    "memory_gb": "Memory, largest rank (GB)",
    "valid_accuracy": "Validation accuracy",
    "valid_bits_per_byte": "Validation bits per byte",
}
ALWAYS_OPEN = tuple(TITLES)[:9]
EXACT = ("lr", "loss_scale")  # not smoothed
NO_CHART = {
    *UNITS,
    "samples",
    "time",
    "flops",
    "batch_hash",
    "slowest_rank",
    "skipped",
    "spike",
    "failures",
    "valid_tokens",
    "valid_images",
}


def write_page(runs: Sequence[Run], metric: str) -> str:
    """runs: best first. metric: a key of metrics.jsonl. Raises InputError where the plotting library is missing."""
    with np.errstate(over="ignore", invalid="ignore"):
        data = payload(runs, metric)
    parts = {
        "library_css": library_file(STYLE),
        "css": _own("page.css"),
        "data": _in_script(data),
        "library": library_file(SCRIPT),
        "script": _own("page.js"),
    }
    # in one pass, since what is put in may hold a name in braces itself
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], _own("page.html"))


def _own(name: str) -> str:
    return resources.files("pretraining.report").joinpath(name).read_text(encoding="utf-8")


def _in_script(values: Json) -> str:
    """JSON that can't end the element it stands in, whatever a run is called."""
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


def payload(runs: Sequence[Run], metric: str) -> Json:
    """What page.js is given."""
    best = best_runs(runs, metric)
    return {
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "metric": metric,
        "runs": [_without_infinity(_run(run, metric, run in best)) for run in runs],
        "charts": charts(runs),
        "differences": _differences(runs),
    }


def best_runs(runs: Sequence[Run], metric: str) -> list[Run]:
    """The best one of each objective, whose losses compare with each other's alone, where there are several."""
    found = []
    for objective in dict.fromkeys(run.objective for run in runs):
        able = [run for run in runs if run.objective == objective and run.best(metric) is not None]
        if len(able) > 1:
            found.append(ranked(able, metric)[0])
    return found


def ranked(runs: Sequence[Run], metric: str) -> list[Run]:
    """Best first, those of an objective together; those that have no such metric last."""
    sign = -1.0 if is_better_higher(metric) else 1.0
    order = list(dict.fromkeys(run.objective for run in runs))

    def place(run: Run) -> tuple[int, bool, float]:
        best = run.best(metric)
        return order.index(run.objective), best is None, sign * best[0] if best else 0.0

    return sorted(runs, key=place)


def _run(run: Run, metric: str, is_best: bool) -> Json:
    columns, unit = run.columns, run.unit
    lost = [max(0, _number(s.get("reached")) - _number(s.get("step"))) for s in run.starts[1:]]
    total = run.config.get("train.steps")
    return {
        "name": run.name,
        "objective": run.objective,
        "unit": unit,
        "status": run.status,
        "step": run.step,
        "total": total if isinstance(total, int) else None,
        "is_best": is_best,
        "best": run.best(metric),
        "last": columns[metric].last if metric in columns else None,
        "train": _end(columns.get("loss")),
        "speed": _median(columns.get(f"{unit}_per_second")),
        "tflops": _median(columns.get("tflops")),
        "mfu": _median(columns.get("mfu")),
        "seen": columns[unit].last if unit in columns else None,
        "seconds": run.seconds,
        "goodput": run.goodput(),
        "restarts": len(run.starts) - 1 if run.starts else None,
        "restarted": [_number(start.get("step")) for start in run.starts[1:]],
        "lost": sum(lost),
        "skipped": len(columns["skipped"].steps) if "skipped" in columns else 0,
        "spikes": len(columns["spike"].steps) if "spike" in columns else 0,
        "starts": [_start(start, number) for number, start in enumerate(run.starts)],
        "axes": _axes(run),
        "samples": read_samples(run.folder),
    }


def _without_infinity(values: Json) -> Json:
    """JSON has none; what a run logged may add up to it."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _start(start: Entry, number: int) -> list[str]:
    """One row of the table of starts."""
    code = start.get("exit_code")
    hosts = start.get("hosts")
    return [
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(0, _number(start.get("time"))), 1 << 33))),
        str(_number(start.get("step"))),
        str(max(0, _number(start.get("reached")) - _number(start.get("step")))) if number else "",
        "" if number == 0 else "without a word" if code is None else f"with {_short(code)}",
        _short(start.get("ranks")),
        _short(", ".join(map(str, hosts)) if isinstance(hosts, list) else hosts),
        _short(start.get("job")),
        _short(start.get("code")),
    ]


def _axes(run: Run) -> Json:
    """What a step is in tokens, hours, FLOPs: straight lines between these points."""
    hours = run.columns.get("time")
    tables = {unit: run.columns[unit] for unit in (*UNITS, "flops") if unit in run.columns}
    found = {name: Column(np.append(0.0, c.steps), np.append(0.0, c.values)) for name, c in tables.items()}
    if hours is not None:
        found["hours"] = Column(hours.steps, hours.values / 3600)
    return {name: _axis(column) for name, column in found.items()}


def _axis(column: Column) -> Json:
    places = np.unique(np.linspace(0, len(column.steps) - 1, AXIS_POINTS).astype(np.int64))
    return {"x": _steps(column.steps[places]), "y": _base64(column.values[places], "<f8")}


def charts(runs: Sequence[Run]) -> list[Json]:
    """The curves of all runs by key: those that everybody looks at first, the rest to be unfolded."""
    keys = sorted({key for run in runs for key in run.columns if not key.startswith("layers/")} - NO_CHART)
    opened = [key for key in ALWAYS_OPEN if key in keys and not (key == "tflops" and "mfu" in keys)]
    return [_chart(runs, key, key not in opened) for key in [*opened, *(k for k in keys if k not in opened)]]


def _chart(runs: Sequence[Run], key: str, folded: bool) -> Json:
    dots = key.startswith("valid_")
    most = max(200, min(MOST_POINTS, SHARED_POINTS // len(runs)))
    return {
        "key": key,
        "title": TITLES.get(key, key.replace("_", " ").capitalize()),
        "full": key == "loss",
        "folded": folded,
        "dots": dots and all(len(run.columns[key].steps) < 100 for run in runs if key in run.columns),
        "smooth": not dots and key not in EXACT,
        "curves": [_curve(run.columns[key], most) if key in run.columns else None for run in runs],
    }


def _curve(column: Column, most: int) -> Json:
    """raw: extremes, mean: what is smoothed, where it is not the same."""
    raw = extremes(column, most)
    found = {"raw": {"x": _steps(raw.steps), "y": _base64(raw.values, "<f4")}}
    if raw is not column:
        mean = means(column, most)
        found["mean"] = {"x": _steps(mean.steps), "y": _base64(mean.values, "<f4")}
    return found


def _differences(runs: Sequence[Run]) -> list[Json]:
    """Of the runs of each objective, where there are several: between families dozens of keys differ."""
    found = []
    for objective in dict.fromkeys(run.objective for run in runs):
        group = [run for run in runs if run.objective == objective]
        if len(group) > 1:
            rows = [[key, *map(_short, values)] for key, values in differing(group)]
            found.append({"objective": objective, "runs": [runs.index(run) for run in group], "rows": rows})
    return found


def _short(value: object) -> str:
    text = "–" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _median(column: Column | None) -> float | None:
    return None if column is None else float(np.median(column.values))


def _end(column: Column | None) -> float | None:
    """The mean over its last twentieth."""
    return None if column is None else float(column.values[-max(1, len(column.values) // 20) :].mean())


def _steps(steps: Array) -> str:
    return _base64(np.clip(np.rint(steps), 0, 2**32 - 1), "<u4")


def _base64(values: Array, kind: str) -> str:
    largest = float(np.finfo(np.float32).max)  # what JSON or a line held beyond it makes no curve
    bounded = values if kind != "<f4" else np.clip(values, -largest, largest)
    return base64.b64encode(bounded.astype(kind).tobytes()).decode()
