"""YAML files that others may have written: checked as a stream of tokens before anything is built of them.

Aliases could unfold a few lines to more than any memory holds, tags could stand for objects, and deep nesting ends the
recursion of those that walk through it: none of them is needed in a configuration.
"""

from __future__ import annotations

from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, read_bytes

MAX_BYTES = 1 << 18
MAX_VALUES = 20_000  # OmegaConf takes a quarter of a millisecond for each
MAX_DEPTH = 50
MAX_INTERPOLATION = 1000  # characters of a text that holds one: OmegaConf's parser takes quadratic time


def read_yaml(location: Location) -> Any:
    """What stands in a file that a program wrote: `${...}` has no meaning there. Raises InputError."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    text = checked_text(location)
    if "${" in text:
        raise InputError(f"{location} holds an interpolation, which no run writes")
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise InputError(f"{location} is not YAML that a run writes: {str(error)[:300]}") from error


def checked_text(location: Location) -> str:
    """A YAML file's text. Raises InputError that names the file, where it is not what a configuration may be."""
    import yaml

    try:
        text = read_bytes(location, MAX_BYTES).decode("utf-8-sig")
        problem = _problem(text)
    except OSError as error:
        raise InputError(f"{location} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{location} is not UTF-8 ({error.reason} at byte {error.start})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{location} is not YAML: {str(error)[:300]}") from error
    if problem is not None:
        raise InputError(f"{location}: {problem}")
    return text


def _problem(text: str) -> str | None:
    """What a configuration must not have, else None. Raises yaml.YAMLError."""
    import yaml

    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if number > MAX_VALUES:
            return f"more than {MAX_VALUES} values are not supported"
        if depth > MAX_DEPTH:
            return f"line {line} is nested too deeply"
        if isinstance(event, yaml.AliasEvent):
            return f"line {line}: the alias *{event.anchor} is not supported"
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) and event.tag not in (None, "!"):
            return f"line {line}: the tag {event.tag} is not supported"
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value and len(event.value) > MAX_INTERPOLATION:
            return f"line {line}: an interpolation of more than {MAX_INTERPOLATION} characters is not supported"
    return None
