"""JSON files: manifests, run.json, tokenizer_info.json, configs of other tools. None is trusted.

What stands in a file has bounds, so that no caller meets a value that its arithmetic or recursion cannot take:
MAX_BYTES, MAX_VALUES, MAX_DEPTH, integers of MAX_DIGITS digits, finite numbers, no key twice, UTF-8.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, read_bytes, write_atomically

T = TypeVar("T")
MAX_BYTES = 1 << 28  # the manifest of a checkpoint of many thousand ranks has tens of megabytes
MAX_VALUES = 10_000_000  # an empty list of 3 bytes takes some 64 in memory
MAX_DEPTH = 100
MAX_DIGITS = 20  # 64 bits


def read_json(location: Location, *, key: str = "", hint: str = "", links: bool = True) -> dict[str, Any]:
    """The object in a file. Raises InputError that names the file.

    key: of the config, that led to the file. hint: what to do where it is missing. links: as `files.open_file`.
    """
    file = f"{key}: {location}" if key else str(location)
    values = _read(location, file, links)
    if values is None:
        raise InputError(f"{file} is missing{hint and f': {hint}'}")
    return values


def read_json_if_there(location: Location, *, links: bool = True) -> dict[str, Any]:
    """As `read_json`; {} where there is no such file."""
    return _read(location, str(location), links) or {}


def read_typed(location: Location, kind: type[T], *, key: str = "", hint: str = "", links: bool = True) -> T:
    """The object in a file as a `kind`: a dataclass, a TypedDict or what else pydantic knows. Nothing is converted: "1"
    is no integer. Raises InputError that names the file and the first places which differ. The rest: as `read_json`."""
    values = read_json(location, key=key, hint=hint, links=links)
    return typed(values, kind, f"{key}: {location}" if key else str(location))


def typed(values: object, kind: type[T], name: str) -> T:
    """Parsed JSON as a `kind`, as in `read_typed`. name: what the values are called in the InputError."""
    try:
        # As JSON, where strict has lists as tuples and objects as dataclasses.
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(values, ensure_ascii=False).encode(), strict=True)
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is broken: it holds half of a surrogate pair, which is no text") from error
    except pydantic.ValidationError as error:
        wrong = [_what_is_wrong(e) for e in error.errors()[:3]]
        more = f" and {error.error_count() - 3} more" if error.error_count() > 3 else ""
        raise InputError(f"{name} is broken: {'; '.join(wrong)}{more}") from error


def parse_json(data: bytes | str) -> Any:
    """Any JSON value within the bounds. Raises ValueError."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        if sum(map(text.count, ",[{")) > MAX_VALUES:
            raise ValueError("it has more values than any file meant here")
        values = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _require_flat(values)
    return values


def write_json(location: Location, values: dict[str, Any]) -> None:
    """Atomically, one key or item a line."""
    write_atomically(location, json.dumps(values, indent=1, allow_nan=False) + "\n")


def _read(location: Location, file: str, links: bool) -> dict[str, Any] | None:
    """None where there is no such file."""
    try:
        values = parse_json(read_bytes(location, MAX_BYTES, links=links))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({str(error)[:200]})") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} is not a JSON object")
    return values


def _what_is_wrong(error: ErrorDetails) -> str:
    place = ".".join(map(str, error["loc"]))[:100]
    if error["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place or 'it'}: {error['msg'].removeprefix('Value error, ')[:300]}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):  # readers differ in which of the two they take
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} stands there twice")
    return values


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:MAX_DIGITS]}... is larger than any number meant here")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if abs(value) == float("inf"):
        raise ValueError(f"{digits[:MAX_DIGITS]} is larger than any number meant here")
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_refuse)


def _require_flat(values: object) -> None:
    """Raises ValueError for what functions that call themselves could not walk through."""
    level = [values]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _children(node: object) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
