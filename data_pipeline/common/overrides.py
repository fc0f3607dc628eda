"""A command line's overrides: parsed by Hydra's own grammar, applied to plain values."""

from __future__ import annotations

import copy
import shlex
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
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(text)
    except (HydraException, RecursionError):
        try:
            override = parser.parse_override(quoted := _quoted(text))
        except (HydraException, RecursionError):
            problems.append(f"{text[:200]!r} is not an override of the form key=value{_advice(text)}")
            return None
        text = quoted
    refusal = _refusal(text, override)
    if refusal is not None:
        problems.append(f"{text!r}: {refusal}")
        return None
    deletes = override.is_delete()
    adds = override.is_add() or override.is_force_add()
    return Override(text, override.key_or_group, None if deletes else override.value(), deletes, adds)


def key_of(text: str) -> str:
    """The key that an override is of, whether or not the rest can be read."""
    return text.partition("=")[0].lstrip("+~")


def _quoted(text: str) -> str:
    """`text` with quotes where Hydra's grammar takes no bare characters, as in key=~/x, key=données, key=[a=b,c(1)].

    A list's items are what its commas separate. What has quotes, braces or lists of lists of its own stays as it is:
    that can be meant in several ways.
    """
    key, equals, value = text.partition("=")
    if not key:
        return text
    if value.startswith("[") and value.endswith("]"):
        items = value[1:-1].split(",")
        if any(item.strip().startswith(("[", "{")) for item in items) or _is_unclear(value[1:-1]):
            return text
        return f"{key}{equals}[{','.join(_in_quotes(item.strip()) for item in items)}]"
    if value.startswith(("[", "{")) or "," in value or _is_unclear(value):
        return text
    return f"{key}{equals}{_in_quotes(value)}"


def _is_unclear(value: str) -> bool:
    """Whether there are quotes, escapes, or brackets around commas or without their partner."""
    depth = 0
    for character in value:
        depth += (character in "[({") - (character in "])}")
        if depth < 0 or (depth and character == ",") or character in "'\"\\":
            return True
    return depth != 0


def _in_quotes(value: str) -> str:
    """As text, which numbers, true and null are not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(f"key={value}")
        return value
    except HydraException:
        return f"'{value}'"


def _advice(text: str) -> str:
    """'; if ..., quote it: ...', for a shell, where there is a value."""
    key, equals, value = text.partition("=")
    if not equals or not key or len(text) > 200:
        return ""
    if value.startswith("[") and value.endswith("]"):
        items = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
        meant, quoted = "each part between commas is one text", "[" + ",".join(map(_escaped, items)) + "]"
    else:
        meant, quoted = "its value is one text", _escaped(value)
    argument = f"{key}={quoted}"
    shown = shlex.quote(argument) if set(argument) & set('"$`\\!') else f'"{argument}"'
    return f"; if {meant}, quote it: {shown}"


def _escaped(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def _refusal(text: str, override: HydraOverride) -> str | None:
    if "${" in text:
        return "interpolations are not supported: they could bring secrets into config.yaml"
    if "@" in text.split("=")[0]:
        return "the package of a group cannot be changed"
    if override.is_delete() and "=" in text:
        return f"~ takes no value: {text.split('=')[0]}"
    if override.is_sweep_override():
        return f"sweeps are not supported{_advice(text)}"
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
