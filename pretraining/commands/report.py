"""`pretrain-report run_dir=[A,B]`: runs side by side as one page of HTML."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Paths, PathText, configclass

ABOUT = """pretrain-report: runs side by side as one page of HTML, which opens anywhere and asks nobody.

Curves with zoom and hover, which run is live or has died, the best by a metric, restarts, throughput, what differs in
their configurations, and samples. The runs are only read, also while they train.

Example:
  pretrain-report run_dir=runs/first
  pretrain-report run_dir=[runs/first,runs/second] output=compare.html
  pretrain-report run_dir=runs metric=valid_accuracy
"""


@configclass
class ReportConfig:
    """Write runs side by side as one page of HTML.

    run_dir: the run, or several as a list; of a folder that is none, the runs in it.
    output: the page; null writes report.html into the first folder of run_dir.
    metric: the key of metrics.jsonl by which runs are ranked, those of one objective among each other: accuracies,
        throughput and utilization by their largest value, everything else by its smallest; null takes valid_loss.
    """

    run_dir: Paths
    output: PathText | None = None
    metric: str | None = None


def main() -> int:
    return run_command(report, ABOUT, "report", ReportConfig)


def report(overrides: list[str]) -> None:
    from data_pipeline.common.files import write_atomically
    from pretraining.report.page import best_runs, ranked, write_page
    from pretraining.report.runs import find_runs

    began = time.monotonic()
    config = compose_config("report", overrides, ReportConfig)
    metric = config.metric or "valid_loss"
    runs = ranked(find_runs(config.run_dir), metric)
    known = sorted({key for run in runs for key in run.columns})
    if config.metric is not None and config.metric not in known:
        raise InputError(f"metric={metric}: no run has it; there are {', '.join(known) or 'no numbers yet'}")
    path = Path(config.output or Path(config.run_dir[0]) / "report.html")
    page = write_page(runs, metric)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise InputError(f"output={path} cannot be written: {error.strerror or error}") from error
    for run in best_runs(runs, metric):
        best = run.best(metric)
        assert best is not None, "the best has one"
        print(f"best {run.objective} by {metric}: {run.name} ({best[0]:.4f} at step {best[1]})")
    lines = sum(len(run.columns["step_seconds"].steps) for run in runs if "step_seconds" in run.columns)
    print(
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {lines:,} training lines in {time.monotonic() - began:.1f} s: "
        f"{path} ({len(page.encode()) / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    sys.exit(main())
