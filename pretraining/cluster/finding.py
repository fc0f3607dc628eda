"""What a preflight finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.common.errors import InputError

Status = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True)
class Finding:
    """check: what was looked at. problem: the job would fail, and is not submitted."""

    check: str
    status: Status
    text: str


def found_by(check: str, work: Callable[[], Finding | str]) -> Finding:
    """What `work` finds: a text where all is well, InputError as a problem."""
    try:
        found = work()
    except InputError as error:
        return Finding(check, "problem", str(error))
    return Finding(check, "ok", found) if isinstance(found, str) else found


def table(findings: Sequence[Finding]) -> str:
    """A line each; further lines of a text are indented."""
    width = max((len(f.check) for f in findings), default=0)
    indent = "\n" + " " * (width + 15)
    return "\n".join(f"{f.check:{width}}  {f.status:11}  {f.text.strip().replace(chr(10), indent)}" for f in findings)
