"""The files of pinned values, NAME.json: read, compared and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
IF_MEANT = (
    "If the change is meant, `make golden` rewrites the pinned values; say in CHANGELOG.md what changed and why. "
    "If it is not, what a user's run computes has changed on every layout alike."
)


def load(kind: str) -> dict[str, Any]:
    """{case: values} of `kind`.json."""
    values: dict[str, Any] = json.loads((FOLDER / f"{kind}.json").read_text("utf-8"))
    return values


def save(kind: str, values: dict[str, Any]) -> None:
    """Sorted, one line for each innermost list or value, so that a diff shows what changed."""
    (FOLDER / f"{kind}.json").write_text(_lines(values, "") + "\n", "utf-8")


def check(kind: str, case: str, found: Any, relative: float = 0.0) -> None:
    """Raises AssertionError that lists each value of `case` which differs from the pinned one by more than
    `relative` (of floats; anything else must be equal)."""
    pinned = load(kind)
    assert case in pinned, f"{kind}.json pins nothing for {case}: `make golden` adds it"
    differing = differences(case, pinned[case], found, relative)
    assert not differing, "\n".join([f"{kind}.json differs:", *differing, IF_MEANT])


def check_cases(kind: str, cases: list[str]) -> None:
    """Raises AssertionError where `kind`.json pins other cases than these."""
    assert sorted(load(kind)) == sorted(cases), f"{kind}.json pins other cases than there are: run `make golden`"


def differences(name: str, pinned: Any, found: Any, relative: float = 0.0) -> list[str]:
    """A line for each value that differs."""
    if isinstance(pinned, dict) and isinstance(found, dict):
        keys = sorted({*pinned, *found})
        return [line for k in keys for line in differences(f"{name}: {k}", pinned.get(k), found.get(k), relative)]
    if isinstance(pinned, list) and isinstance(found, list) and len(pinned) == len(found):
        pairs = enumerate(zip(pinned, found, strict=True), start=1)
        return [line for i, (p, f) in pairs for line in differences(f"{name}, number {i}", p, f, relative)]
    if isinstance(pinned, float) and isinstance(found, float):
        equal = abs(found - pinned) <= relative * abs(pinned)
    else:
        equal = found == pinned
    return [] if equal else [f"- {name}: pinned {pinned!r}, found {found!r}"]


def _lines(values: Any, indent: str) -> str:
    if not isinstance(values, dict):
        return json.dumps(values)
    inner = indent + " "
    lines = [f"{inner}{json.dumps(key)}: {_lines(value, inner)}" for key, value in sorted(values.items())]
    return "{\n" + ",\n".join(lines) + "\n" + indent + "}"
