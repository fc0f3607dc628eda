"""What a config dataclass says of its keys: which there are, their values, defaults and meanings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

import annotated_types
import pydantic

from data_pipeline.common.fields import Condition, PickedBy, plain, spelled

REQUIRED = "???"  # as OmegaConf writes a value that is still to be given
Values = dict[str, Any]  # nested, plain


@dataclass(frozen=True)
class Key:
    """One key of a command line.

    path: dotted. default: plain, or REQUIRED. section: the class of its own keys, if it has any. picks: the names that
    it picks the class of its section from, if it does.
    """

    path: str
    owner: type
    field: pydantic.fields.FieldInfo
    default: Any
    section: type | None
    picks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def conditions(self) -> list[Condition]:
        return [m for m in self.field.metadata if isinstance(m, Condition)]

    @property
    def choices(self) -> list[str]:
        """The values of a key that has a fixed number of them."""
        if self.picks:
            return list(self.picks)
        if typing.get_origin(self.field.annotation) is Literal:
            return [str(value) for value in typing.get_args(self.field.annotation)]
        return ["true", "false"] if self.field.annotation is bool else []

    @property
    def takes_any_keys(self) -> bool:
        """Whether it is a mapping, of keys that its class does not name."""
        return typing.get_origin(self.field.annotation) is dict

    @property
    def values(self) -> str:
        """Which values it takes, in words."""
        return "|".join(self.picks) or describe_type(self.field.annotation, self.field.metadata)

    @property
    def meaning(self) -> str:
        """From the docstring of its class; "" where that has no line for it."""
        if self.picks:
            return "decides which other keys this section has; the chosen member sets it"
        for owner in self.owner.__mro__:
            found = explained(owner).get(self.name)
            if found:
                return found
        return ""


def keys_of(schema: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[Key]:
    """Every key of `schema`, sections before their own; `values` pick the classes of those that are PickedBy."""
    for name, field in pydantic_fields(schema).items():
        given = values.get(name)
        section = section_class(field, given)
        default = REQUIRED if field.is_required() else plain(field.get_default(call_default_factory=True))
        yield Key(prefix + name, schema, field, default, section)
        if section is not None:
            picked = picker(field)
            for key in keys_of(section, given if isinstance(given, Mapping) else {}, f"{prefix}{name}."):
                own = picked is not None and key.path == f"{prefix}{name}.{picked.key}"
                yield dataclasses.replace(key, picks=tuple(picked.entries())) if picked and own else key


def pydantic_fields(schema: type) -> dict[str, pydantic.fields.FieldInfo]:
    fields: dict[str, pydantic.fields.FieldInfo] = vars(schema)["__pydantic_fields__"]
    return fields


def section_class(field: pydantic.fields.FieldInfo, given: object) -> type | None:
    """The config class of a field's values; None where it has none, or the one it picks is not known."""
    picked = picker(field)
    if picked is not None:
        try:
            return picked.pick(given if isinstance(given, Mapping) else {})
        except ValueError:
            return None
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else None


def picker(field: pydantic.fields.FieldInfo) -> PickedBy | None:
    return next((m for m in field.metadata if isinstance(m, PickedBy)), None)


def others_with(schema: type, path: str) -> tuple[str, list[str]] | None:
    """For the key `path` of a section that is PickedBy: its path.key, and the names whose classes have such a key."""
    section, _, name = path.partition(".")
    field = pydantic_fields(schema).get(section)
    picked = None if field is None else picker(field)
    if picked is None or "." in name or not name:
        return None
    names = [n for n in picked.entries() if name in pydantic_fields(picked.pick({picked.key: n}))]
    return f"{section}.{picked.key}", names


def whole(schema: type, values: Mapping[str, Any]) -> Values:
    """`values` with the defaults of what they leave out, REQUIRED where there is none. Nothing is checked."""
    filled: Values = dict(values)
    for name, field in pydantic_fields(schema).items():
        section = section_class(field, values.get(name))
        if section is not None and isinstance(values.get(name, {}), Mapping):
            filled[name] = whole(section, values.get(name, {}))
        elif name not in values:
            filled[name] = REQUIRED if field.is_required() else plain(field.get_default(call_default_factory=True))
    return {name: filled[name] for name in [*pydantic_fields(schema), *(values.keys() - pydantic_fields(schema))]}


def without_effect(schema: type, values: Mapping[str, Any]) -> dict[str, str]:
    """The given keys that have no effect beside the other values, each with the reason."""
    found = {}
    every = whole(schema, values)
    for key in keys_of(schema, values):
        for condition in key.conditions if has(values, key.path) else []:
            beside = f"{key.path.rpartition('.')[0]}.{condition.key}".lstrip(".")
            if not condition.holds(get(every, beside)):
                needs = "" if condition.negated else f": it is used {dataclasses.replace(condition, key=beside)}"
                found[key.path] = f"has no effect with {beside}={spelled(get(every, beside))}{needs}"
    return found


def has(values: object, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def get(values: object, path: str) -> Any:
    """None where there is no such key."""
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


_LINE = re.compile(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.+)")


def explained(owner: type) -> dict[str, str]:
    """The lines `field: meaning` or `field, field: meaning` of a class's docstring; indented lines go on with them."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(vars(owner).get("__doc__") or "").splitlines():
        match = _LINE.fullmatch(line)
        if line.startswith(" ") and names:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        elif match:
            names = match[1].split(", ")
            found.update(dict.fromkeys(names, match[2]))
        else:
            names = []
    return found


def summary(owner: type) -> str:
    """The first sentence of a class's docstring; "" where it begins with its fields."""
    first = inspect.cleandoc(owner.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return "" if _LINE.match(first) else first


def describe_type(kind: object, metadata: Sequence[Any] = ()) -> str:
    """A field's type in words: "integer, at least 1", "adamw|lamb", "list of text, or null"."""
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return describe_type(parameters[0], [*parameters[1:], *metadata])
    if origin in (Union, types.UnionType):
        null = ", or null" if type(None) in parameters else ""
        return " or ".join(describe_type(p, metadata) for p in parameters if p is not type(None)) + null
    if origin is Literal:
        return "|".join(str(value) for value in parameters)
    if origin is list:
        return f"list of {describe_type(parameters[0])}"
    if origin is tuple:
        return f"[{', '.join(describe_type(p) for p in parameters)}]"
    if kind is bool:
        return "true|false"
    words = {int: "integer", float: "number", str: "text"}
    return next((word for known, word in words.items() if kind is known), "keys and values") + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    limits = [limit for m in metadata for limit in (m.metadata if isinstance(m, pydantic.fields.FieldInfo) else [m])]
    words = [
        word
        for limit in limits
        for kind, word in (
            (annotated_types.Gt, "above {0.gt:g}"),
            (annotated_types.Ge, "at least {0.ge:g}"),
            (annotated_types.Lt, "below {0.lt:g}"),
            (annotated_types.Le, "at most {0.le:g}"),
        )
        if isinstance(limit, kind)
        for word in [word.format(limit)]
    ]
    return f" {' and '.join(words)}" if words else ""
