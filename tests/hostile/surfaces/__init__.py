"""Every surface that takes what others wrote."""

from __future__ import annotations

from tests.hostile.case import Case
from tests.hostile.surfaces import (
    architectures,
    archives,
    checkpoints,
    command_line,
    config_dir,
    environment,
    hub,
    malformed,
    mixtures,
    outputs,
    pairs,
    pictures,
    prepared,
    run_dir,
    tokenizers,
    values,
    wire,
)

SURFACES = (
    command_line,
    environment,
    config_dir,
    malformed,
    values,
    prepared,
    checkpoints,
    run_dir,
    hub,
    architectures,
    mixtures,
    tokenizers,
    pairs,
    pictures,
    archives,
    outputs,
    wire,
)


def all_cases() -> list[Case]:
    return [case for surface in SURFACES for case in surface.cases()]
