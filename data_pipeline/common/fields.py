"""Field types of config dataclasses, checked by pydantic on construction."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic

T = TypeVar("T")
Positive = Annotated[int, pydantic.Field(gt=0)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
Fraction = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0)]


@dataclass_transform(frozen_default=True)
def configclass(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are checked on construction and that takes no unknown field."""
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)  # type: ignore[return-value]


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values, as they are written to config.yaml."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
