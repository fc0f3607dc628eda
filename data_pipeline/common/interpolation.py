"""`${key}` in YAML files: what it may refer to, and its value."""

from __future__ import annotations

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

    try:
        with without_resolvers():
            every = OmegaConf.to_container(OmegaConf.create(whole(schema, values)), resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"the configuration cannot be composed: {explained(error)}") from error
    return _given(values, every)


def explained(error: Exception) -> str:
    """What an error of Hydra's or OmegaConf's says, with our reason where a resolver may be its cause."""
    told = str(error)
    if "interpolation" not in told.lower() or "not found" in told:
        return told
    return f"{told}\n${{resolver:...}} is not supported: it could bring secrets into config.yaml; ${{section.key}} is"


def _given(values: Mapping[str, Any], every: Any) -> Values:
    """Of `every` what `values` have, too."""
    return {
        key: _given(value, every[key]) if isinstance(value, Mapping) else every[key] for key, value in values.items()
    }
