"""JSON files that hold one object: manifests, run.json, tokenizer_info.json, configs of other tools."""

from __future__ import annotations

import json
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, is_file, read_bytes, write_atomically


def read_json(location: Location, *, key: str = "", hint: str = "") -> dict[str, Any]:
    """The object in a file. Raises InputError that names the file.

    key: of the config, that led to the file. hint: what to do where it is missing.
    """
    file = f"{key}: {location}" if key else str(location)
    try:
        values = json.loads(read_bytes(location))
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing{hint and f': {hint}'}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested a few thousand deep
        raise InputError(f"{file} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} is not a JSON object")
    return values


def what_is_broken(error: KeyError | TypeError | AttributeError) -> str:
    """What stood in the way of reading parsed JSON, in words."""
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def read_json_if_there(location: Location) -> dict[str, Any]:
    """As `read_json`; {} where there is no such file."""
    return read_json(location) if is_file(location) else {}


def write_json(location: Location, values: dict[str, Any]) -> None:
    """Atomically, one key or item a line."""
    write_atomically(location, json.dumps(values, indent=1) + "\n")
