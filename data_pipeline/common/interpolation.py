"""`${key}` in YAML files: what it may refer to, and its value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.schema import Values, whole


@contextmanager
def without_resolvers() -> Iterator[None]:
    """No `${resolver:...}` has a value inside: what an environment variable holds may be a secret, and config.yaml and
    trackers show every value."""
    from omegaconf.basecontainer import BaseContainer

    kept = BaseContainer._resolvers  # OmegaConf.clear_resolvers() would leave oc.env and its kind
    BaseContainer._resolvers = {}
    try:
        yield
    finally:
        BaseContainer._resolvers = kept


def resolved(schema: type, values: Values) -> Values:
    """`values` with the value of each interpolation in them; they see the defaults of `schema` as well.

    Raises InputError where one refers to no key, or to anything but a key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    every: Any = whole(schema, values)
    if not any("${" in text for _, text in texts(every)):  # OmegaConf takes a quarter of a millisecond for each value
        return copy.deepcopy(values)
    try:
        with without_resolvers():
            every = OmegaConf.to_container(OmegaConf.create(every), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"the configuration cannot be composed: {explained(error)}") from error
    written = next((path for path, text in texts(every) if "${" in text), None)
    if written is not None:  # escaped in a file: whoever reads config.yaml later might resolve it
        raise InputError(f"{written}: a value that holds ${{ is not supported")
    return _given(values, every)


def texts(values: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every key and every text, however deep."""
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            inner = f"{path}.{key}".lstrip(".")
            yield inner, str(key)
            yield from texts(value, inner)
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from texts(value, f"{path}[{number}]")


def explained(error: Exception) -> str:
    """What an error of Hydra's or OmegaConf's says, with our reason where a resolver may be its cause."""
    told = str(error)
    if "interpolation" not in told.lower() or "not found" in told:
        return told
    return f"{told}\n${{resolver:...}} is not supported: it could bring secrets into config.yaml; ${{section.key}} is"


def _given(values: Mapping[str, Any], every: Mapping[str, Any]) -> Values:
    """Of `every` what `values` have, too."""
    return {
        key: _given(value, every[key]) if isinstance(value, Mapping) else every[key] for key, value in values.items()
    }
