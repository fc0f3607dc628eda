"""`make hostile`: every hostile input, a table by surface, and what was not as promised.

python -m tests.hostile [WORD ...] tries only the cases whose surface or name has all words; --quick tries one in
twenty, as `make test` does.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.base import make_base
from tests.hostile.case import Case, Result
from tests.hostile.pool import run_cases, run_in_child
from tests.hostile.surfaces import all_cases


def main(words: Sequence[str]) -> int:
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    if run_in_child(make_base, folder / "base") != 0:
        return 1
    cases = chosen(words)
    results = []
    for result in run_cases(cases, folder, folder / "base"):
        results.append(result)
        if result.faults:
            tell(result)
    print_table(results)
    broken = sum(bool(r.faults) for r in results)
    print(f"{len(results)} inputs in {time.monotonic() - started:.0f} s: {broken} not as promised (kept in {folder})")
    return 1 if broken else 0


def chosen(words: Sequence[str]) -> list[Case]:
    names = [word for word in words if word != "--quick"]
    cases = [c for c in all_cases() if all(name in f"{c.surface} {c.name}" for name in names)]
    if "--quick" not in words:
        return cases
    return [c for c in cases if zlib.crc32(c.name.encode()) % 20 == 0 and c.surface != "the wire"]


def tell(result: Result) -> None:
    last = "\n    ".join(result.output.strip().splitlines()[-4:])[-800:]
    print(f"{result.case.surface}: {result.case.name}: {'; '.join(result.faults)}\n    {last}", flush=True)


def print_table(results: Sequence[Result]) -> None:
    print(f"{'surface':24} {'inputs':>7} {'refused':>8} {'harmless':>9} {'broken':>7} {'slowest s':>10} {'most MB':>8}")
    for surface in dict.fromkeys(r.case.surface for r in results):
        rows = [r for r in results if r.case.surface == surface]
        good = [r for r in rows if not r.faults]
        refused = sum(r.code == 2 for r in good)
        slowest, most = max(r.seconds for r in rows), max(r.megabytes for r in rows)
        broken = len(rows) - len(good)
        print(f"{surface:24} {len(rows):7} {refused:8} {len(good) - refused:9} {broken:7} {slowest:10.1f} {most:8.0f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
