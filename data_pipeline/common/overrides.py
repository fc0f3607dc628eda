"""A command line's overrides: parsed by Hydra's own grammar, applied to plain values."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.common.schema import Values

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override as HydraOverride

CONFIG_DIR = "--config-dir="


@dataclass(frozen=True)
class Override:
    """text: as typed. deletes: ~key, which removes what the YAML files say of it."""

    text: str
    key: str
    value: Any
    deletes: bool = False
    adds: bool = False


def split_config_dirs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """-> (the folders of --config-dir=DIR, the overrides)."""
    folders = [a.removeprefix(CONFIG_DIR) for a in arguments if a.startswith(CONFIG_DIR)]
    return folders, [a for a in arguments if not a.startswith(CONFIG_DIR)]


def parse(text: str, problems: list[str]) -> Override | None:
    """None, and a problem more, where `text` is not an override that is supported."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if text.startswith("-"):
        problems.append(f"unknown option {text!r}; --help lists the options, and keys are given as key=value")
        return None
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        problems.append(f"{text!r} is not an override of the form key=value: {str(error).splitlines()[0]}")
        return None
    if not override.key_or_group:
        problems.append(f"{text!r} is not an override of the form key=value: it has no key")
        return None
    refusal = _refusal(text, override)
    if refusal is not None:
        problems.append(f"{text!r}: {refusal}")
        return None
    deletes = override.is_delete()
    adds = override.is_add() or override.is_force_add()
    return Override(text, override.key_or_group, None if deletes else override.value(), deletes, adds)


def _refusal(text: str, override: HydraOverride) -> str | None:
    if "${" in text:
        return "interpolations are not supported: they could bring secrets into config.yaml"
    if "@" in text.split("=")[0]:
        return "the package of a group cannot be changed"
    if override.is_delete() and "=" in text:
        return f"~ takes no value: {text.split('=')[0]}"
    if override.is_sweep_override():
        return "sweeps are not supported; quote a value that has commas"
    return None


def applied(values: Values, overrides: Iterable[Override]) -> Values:
    """A copy of `values` with the overrides; dictionaries are merged into what is there, as Hydra does."""
    result: Values = copy.deepcopy(values)
    for override in overrides:
        *sections, name = override.key.split(".")
        place: Any = result
        for section in sections:
            if not isinstance(place.get(section), dict):
                if override.deletes:
                    break
                place[section] = {}
            place = place[section]
        else:
            if override.deletes:
                place.pop(name, None)
            else:
                place[name] = _merged(place.get(name), override.value)
    return result


def _merged(old: object, new: object) -> object:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{str(key): _merged(old.get(str(key)), value) for key, value in new.items()}}
