"""Tables of docs/benchmarks.md, each between two markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.convergence.inputs import ROOT

PAGE = ROOT / "docs/benchmarks.md"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replace_section(name: str, text: str, page: Path = PAGE) -> None:
    """Puts `text` between <!-- name --> and <!-- /name -->. Raises ValueError where the page lacks them."""
    old = page.read_text()
    new, found = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.DOTALL
    )
    if found != 1:
        raise ValueError(f"{page}: the markers of {name} stand there {found} times, not once")
    page.write_text(new)


def deviation(values: Sequence[float]) -> float:
    """Of a sample; 0 for one value."""
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
