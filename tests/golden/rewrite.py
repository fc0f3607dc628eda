"""`make golden`: recomputes the pinned values and writes them to tests/golden/*.json.

python -m tests.golden.rewrite [batches|files|flops|losses|samples|schedules ...]; all of them by default.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.golden import batches, files, flops, losses, samples, schedules
from tests.golden.runs import Data
from tests.golden.values import save


def main(kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Data.make(Path(folder))
        for kind in kinds or ["batches", "files", "flops", "losses", "samples", "schedules"]:
            rewrite(kind, data)


def rewrite(kind: str, data: Data) -> None:
    if kind == "files":
        save(kind, {case: files.compute(case, data) for case in files.CASES})
    elif kind == "batches":
        save(kind, {case.name: batches.compute(case, data) for case in batches.CASES})
    elif kind == "flops":
        save(kind, {preset: flops.compute(preset) for preset in flops.PRESETS})
    elif kind == "schedules":
        save(kind, {case: schedules.compute(case) for case in schedules.CASES})
    elif kind == "samples":
        save(kind, {case: samples.compute(case, data) for case in samples.CASES})
    elif kind == "losses":
        save(kind, {case.name: losses.compute(case, data) for case in losses.CASES})
    else:
        raise SystemExit(f"{kind}: no such kind of values; there are batches, files, flops, losses, samples, schedules")
    print(f"wrote tests/golden/{kind}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
