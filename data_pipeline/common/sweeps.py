"""`--multirun`: an override with several values, by Hydra's own grammar, stands for several commands."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.common.errors import InputError
from data_pipeline.common.overrides import CONFIG_DIR, read_override

MOST = 1000  # combinations
LONGEST_NAME = 120  # characters


@dataclass(frozen=True)
class Combination:
    """One command of a sweep. arguments: all of its overrides; chosen: those of them that differ between commands."""

    arguments: list[str]
    chosen: list[str]


def combinations(arguments: Sequence[str]) -> list[Combination]:
    """Every combination of the values of `a=1,2`, `a=range(1,4)` and `a=choice(x,y)` among the arguments, the last one
    changing fastest; one where none has several values. Raises InputError for more than MOST."""
    found = [Combination([], [])]
    for argument in arguments:
        values = _values(argument)
        if len(found) * len(values) > MOST:
            raise InputError(f"--multirun: {argument} makes more than {MOST} combinations")
        found = [
            Combination([*c.arguments, value], [*c.chosen, value] if len(values) > 1 else c.chosen)
            for c, value in itertools.product(found, values)
        ]
    return found


def _values(argument: str) -> list[str]:
    """The overrides that one with several values stands for; of any other argument itself."""
    override = None if argument.startswith(CONFIG_DIR) else read_override(argument)
    if override is None or not override.is_sweep_override():
        return [argument]  # what is wrong with it is told when it is composed
    refusal = f"--multirun: {argument} names no values: give them as key=a,b, choice(a,b) or range(1,4)"
    if not override.is_discrete_sweep() or "glob(" in argument:
        raise InputError(refusal)
    key = override.get_key_element()
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST + 1))
    except ValueError as error:  # omegaconf's, of a range within a choice
        raise InputError(refusal) from error
    return [f"{key}={value}" for value in values]


def folder_names(found: Sequence[Combination]) -> list[str]:
    """A folder's name for each, by what it chose, as in lr-0.001_model-gpt2_small: more values change none."""
    keys = [choice.partition("=")[0].lstrip("+") for choice in found[0].chosen] if found else []
    last = [key.rpartition(".")[2] for key in keys]
    shown = [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]
    names = []
    for combination in found:
        values = [re.sub(r"[^\w.+-]+", "_", choice.partition("=")[2]).strip("_") for choice in combination.chosen]
        text = "_".join(f"{key}-{value}" for key, value in zip(shown, values, strict=True))
        names.append(text[:LONGEST_NAME] or "run")
    # values that differ only in what a folder's name cannot hold: the first keeps the name
    return [
        name if name not in names[:number] else f"{name}_{zlib.crc32(' '.join(found[number].chosen).encode()):08x}"
        for number, name in enumerate(names)
    ]
