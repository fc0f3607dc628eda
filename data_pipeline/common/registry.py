"""Tables of what a `name` in a config picks, in strings: nothing heavy is imported before it is chosen."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(reference: str) -> Any:
    """What "package.module:Name" refers to."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
