"""Field types of config dataclasses, checked by pydantic on construction, and what a field can say of itself."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Protocol, TypeVar, cast, dataclass_transform

import pydantic
from pydantic_core import CoreSchema, core_schema

from data_pipeline.common.registry import load

T = TypeVar("T")
Scalar = str | int | float | bool | None
Positive = Annotated[int, pydantic.Field(gt=0)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
Fraction = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Smoothing = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0)]
# ~ is expanded: no shell does it after `key=`
PathText = Annotated[str, pydantic.AfterValidator(os.path.expanduser)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[PathText], pydantic.BeforeValidator(_as_list)]  # one may be given without brackets


@dataclass_transform(frozen_default=True)
def configclass(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are checked on construction and that takes no unknown field.

    Its docstring explains every field in a line `field: meaning` (further lines are indented): `--help` shows it.
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)  # type: ignore[return-value]


class Entry(Protocol):
    """What a table of choices holds: at least the reference "module:Class" of a choice's config class."""

    @property
    def config(self) -> str: ...


@dataclass(frozen=True)
class PickedBy:
    """Marks a field that is checked by the class that its own `key` picks from a table.

    table: "module:TABLE", a Mapping[str, Entry]. It is looked up at each use: whoever adds an entry is served.
    """

    table: str
    key: str = "name"

    def entries(self) -> Mapping[str, Entry]:
        return load(self.table)

    def pick(self, values: Mapping[str, Any]) -> type:
        """The class for these values. Raises ValueError where their `key` is missing or not in the table."""
        name, entries = str(values.get(self.key)), self.entries()
        if name not in entries:
            raise ValueError(f"{self.key}={name} is unknown; there are {', '.join(sorted(entries))}")
        return load(entries[name].config)

    def _validate(self, values: object) -> Any:
        if dataclasses.is_dataclass(values):
            return values
        if not isinstance(values, dict):
            raise ValueError(f"Input should be keys and values, {self.key} among them")
        return pydantic.TypeAdapter(self.pick(values)).validate_json(json.dumps(values))

    def __get_pydantic_core_schema__(self, source: type, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)


@dataclass(frozen=True)
class Condition:
    """Marks a field that has an effect only while the field `key` of the same class (dotted: of a class in it) has one
    of `values` - or, with `negated`, has none of them."""

    key: str
    values: tuple[Scalar, ...]
    negated: bool = False

    def holds(self, value: object) -> bool:
        return (value in self.values) != self.negated

    def __str__(self) -> str:
        choices = " or ".join(f"{self.key}={spelled(v)}" for v in self.values)
        return f"not with {choices}" if self.negated else f"only with {choices}"


def used_with(key: str, *values: Scalar) -> Condition:
    return Condition(key, values)


def unused_with(key: str, *values: Scalar) -> Condition:
    return Condition(key, values, negated=True)


def to_dict(config: object) -> dict[str, Any]:
    """A config dataclass as plain values, as they are written to config.yaml; subclasses with all of their fields."""
    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(cast(Any, config))}


def plain(value: object) -> Any:
    """A field's value as JSON has it."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def spelled(value: object) -> str:
    """A value as it is typed on a command line: null, true, [0.9, 0.95], text without quotes."""
    return value if isinstance(value, str) else json.dumps(plain(value))
