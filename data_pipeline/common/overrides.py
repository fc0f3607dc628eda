"""A command line's overrides: parsed by Hydra's own grammar, applied to plain values."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data_pipeline.common.interpolation import texts
from data_pipeline.common.schema import Values

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override as HydraOverride

MAX_DEPTH = 20  # of lists in lists
MAX_STRUCTURED = 4000  # characters of a value with lists, braces or commas in quotes
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
    if text.startswith("-"):
        problems.append(
            f"unknown option {shortened(text)!r}; --help lists the options, and keys are given as key=value"
        )
        return None
    items = flat_list(text)
    if items is not None:
        return _with_items(text, items, problems)
    if (key := key_of(text)) and (excess := _excess(text)):
        problems.append(f"{key[:200]}: {excess}")
        return None
    read = _read(text)
    if read is None:
        problems.append(f"{shortened(text)!r} is not an override of the form key=value{_advice(text)}")
        return None
    text, override = read
    if not override.key_or_group:
        problems.append(f"{shortened(text)!r} is not an override of the form key=value: it has no key")
        return None
    value = None if override.is_delete() else override.value()
    refusal = _refusal(text, override, value)
    if refusal is not None:
        problems.append(f"{shortened(text)!r}: {refusal}")
        return None
    adds = override.is_add() or override.is_force_add()
    return Override(text, override.key_or_group, value, override.is_delete(), adds)


def read_override(text: str) -> HydraOverride | None:
    """What `text` means to Hydra; None where it means nothing, or is more than its parser can take."""
    if text.startswith("-") or flat_list(text) is not None or _excess(text):
        return None
    read = _read(text)
    return None if read is None else read[1]


def _read(text: str) -> tuple[str, HydraOverride] | None:
    """-> (`text`, with quotes where it needs them, and what it means to Hydra); None where it means nothing."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for spelling in (lambda: text, lambda: _quoted(text)):
        try:
            return spelling(), parser.parse_override(spelling())
        except (HydraException, RecursionError, ValueError):  # ValueError: an integer of more than 4300 digits
            continue
    return None


_PLAIN_ITEM = re.compile(r"(?!(?i:true|false|null|inf|nan)$)(?:[^\W\d]|/)[\w/.-]*|'[^'\\$]*'")
_NUMBER_ITEM = re.compile(r"-?[0-9]{1,10}\.[0-9]{1,10}")
_INTEGER_ITEM = re.compile(r"-?(0|[1-9][0-9]{0,17})")


def flat_list(text: str) -> list[str] | None:
    """The items of key=[item,item,...], where they are neither lists nor need Hydra's parser as a whole; else None.

    Files named by a pattern make a list of thousands of names, and Hydra's parser takes quadratic time for it.
    """
    key, equals, value = text.partition("=")
    if not (equals and value.startswith("[") and value.endswith("]")) or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        return None
    items = value[1:-1].split(",")
    whole = len(items) > 1 and all(item.count("'") in (0, 2) and not set(item) & set('"[](){}\\$') for item in items)
    return items if whole else None


def _with_items(text: str, items: list[str], problems: list[str]) -> Override | None:
    """The override that a flat list is: each item is read by itself."""
    key = key_of(text)
    values = []
    for item in items:
        value = _item(item)
        if isinstance(value, _NoValue):
            problems.append(f"{shortened(text)!r} is not an override of the form key=value{_advice(text)}")
            return None
        values.append(value)
    return Override(text, key, values)


class _NoValue:
    """What is no value to Hydra."""


@lru_cache(maxsize=4096)
def _item(item: str) -> object:
    """The value of an item of a list; _NoValue where it has none."""
    plain = item.strip(" ")
    if _PLAIN_ITEM.fullmatch(plain):
        return plain.strip("'")
    if _INTEGER_ITEM.fullmatch(plain):
        return int(plain)
    if _NUMBER_ITEM.fullmatch(plain):
        return float(plain)
    read = _read(f"key=[{item}]")
    value = None if read is None else read[1].value()
    return value[0] if isinstance(value, list) and len(value) == 1 else _NoValue()


def _excess(text: str) -> str | None:
    """Why `text` is more than Hydra's parser can take, which is quadratic in structure and calls itself."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"lists nested more than {MAX_DEPTH} deep are not supported"
    if len(text) > MAX_STRUCTURED and set(text) & set("[]{}(),$"):
        return f"more than {MAX_STRUCTURED} characters with brackets, braces or commas in quotes are not supported"
    return None


def shortened(text: str, length: int = 200) -> str:
    """For a message: nobody reads more, and a value may have a hundred thousand characters."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


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


def _refusal(text: str, override: HydraOverride, value: object) -> str | None:
    # In what was typed and in what it means: $\\{ is ${ to those who read the value.
    if "${" in text or any("${" in found for _, found in texts(value)):
        return "interpolations are not supported: they could bring secrets into config.yaml"
    if "@" in text.split("=")[0]:
        return "the package of a group cannot be changed"
    if override.is_delete() and "=" in text:
        return f"~ takes no value: {text.split('=')[0]}"
    if override.is_sweep_override():
        return f"several values are for --multirun{_advice(text)}"
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
