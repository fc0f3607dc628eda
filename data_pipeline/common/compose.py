"""How every command reads its configuration: Hydra groups and overrides, checked against one typed dataclass.

YAML files hold only what differs from the dataclass. Every problem of a command line is reported in one message, with
the nearest valid key, before torch is imported.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from data_pipeline.common.errors import InputError
from data_pipeline.common.groups import Groups, conf_dir
from data_pipeline.common.interpolation import resolved
from data_pipeline.common.overrides import Override, applied, key_of, parse, shortened, split_config_dirs
from data_pipeline.common.schema import (
    REQUIRED,
    Key,
    Values,
    get,
    has,
    keys_of,
    others_with,
    pydantic_fields,
    whole,
    without_effect,
)

__all__ = ["compose_config", "composed", "conf_dir", "read_config"]
T = TypeVar("T")
NO_SYNONYMS: Mapping[str, str] = {}
HYDRA = {"hydra.*": "hydra itself is not configured here; --help lists the options"}


def compose_config(
    config_name: str,
    arguments: Sequence[str],
    schema: type[T],
    problems: Callable[[T, Mapping[str, str]], list[str]] | None = None,
    synonyms: Mapping[str, str] = NO_SYNONYMS,
) -> T:
    """`conf/<config_name>.yaml` with Hydra overrides (and --config-dir=DIR), as an instance of `schema`.

    problems: asked for contradictions between keys, with the member chosen of each group. synonyms: see _Hints.
    Raises InputError with every problem found.
    """
    attempt = compose_with_problems(config_name, arguments, schema, problems, synonyms)
    raise_problems(attempt.problems)
    assert attempt.config is not None
    return attempt.config


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """config: without the values that are faulty; None where the others make none."""

    config: T | None
    problems: list[str]


def compose_with_problems(
    config_name: str,
    arguments: Sequence[str],
    schema: type[T],
    problems: Callable[[T, Mapping[str, str]], list[str]] | None = None,
    synonyms: Mapping[str, str] = NO_SYNONYMS,
) -> Attempt[T]:
    """As compose_config, for a command that goes on to look for more problems."""
    result = composed(config_name, arguments, schema, synonyms)
    config, wrong = validate(result.values, schema, result.hints.hint)
    if config is None:  # what could not be read is reported as such, not as missing
        wrong = {key: message for key, message in wrong.items() if not _concerns(key, result.unread)}
    found = result.problems + [f"{key}: {message}" if key else message for key, message in wrong.items()]
    if wrong or result.unread:  # go on without the faulty values, so that contradictions elsewhere are reported as well
        config, _ = validate(result.without([*wrong, *result.unread]), schema)
    if config is not None and problems is not None:
        found += problems(config, result.members)
    return Attempt(config, found)


def raise_problems(found: Sequence[str]) -> None:
    """InputError with all of them, where there are any; one stands by itself, more below one another."""
    if found:
        raise InputError(found[0] if len(found) == 1 else "\n" + "\n".join(f"- {problem}" for problem in found))


def read_config(values: object, schema: type[T], modules: Sequence[str] = ()) -> T:
    """Plain values, of a run's config.yaml for example, as an instance of `schema`. Raises InputError.

    modules: those that the user has named. No other is imported, whatever the values say: they may be a stranger's.
    """
    if not isinstance(values, dict):
        raise InputError("no keys and values were found")
    named = values.get("modules")
    unknown = [name for name in named if name not in modules] if isinstance(named, list) else []
    if unknown:
        raise InputError(
            "it imports modules of its own, which happens only where you name them: "
            f"if you trust them, add modules=[{','.join(map(str, [*modules, *unknown]))}]"
        )
    config, wrong = validate(values, schema)
    raise_problems([f"{key}: {message}" for key, message in wrong.items()])
    assert config is not None
    return config


@dataclass(frozen=True)
class Composed:
    """What a command line says. values: of YAML files and overrides, nested, without defaults, interpolations resolved.
    members: the one chosen of each group. problems: those of single overrides; these are left out of values. unread:
    keys of those that cannot be read at all. from_files: as the files say it, interpolations as written."""

    schema: type
    values: Values
    problems: list[str]
    groups: Groups
    members: dict[str, str]
    from_files: Values
    overrides: list[Override]
    unread: list[str]
    hints: _Hints

    @property
    def whole(self) -> Values:
        """With every default; REQUIRED where a value is still to be given."""
        return whole(self.schema, self.values)

    @property
    def keys(self) -> dict[str, Key]:
        return {key.path: key for key in keys_of(self.schema, self.values)}

    def without(self, faulty: Sequence[str]) -> Values:
        """The values without the overrides that concern these keys."""
        left = [o for o in self.overrides if not _concerns(o.key, faulty)]
        return resolved(self.schema, applied(self.from_files, left))


def composed(
    config_name: str, arguments: Sequence[str], schema: type, synonyms: Mapping[str, str] = NO_SYNONYMS
) -> Composed:
    """Raises InputError where the YAML files themselves cannot be composed."""
    folders, texts = split_config_dirs(arguments)
    groups, problems = Groups(config_name, folders), list[str]()
    parsed = {text: parse(text, problems) for text in texts}
    overrides = [o for o in (parsed[text] for text in texts) if o is not None]
    unread = [key_of(text) for text, override in parsed.items() if override is None]
    choices = [o for o in overrides if o.key in groups.chosen or (o.adds and o.key in groups.members)]
    good = {o.key: o for o in choices if _is_member(o, groups, problems)}
    from_files, members = groups.compose([_choice(o, groups) for o in good.values() if o.value is not None])
    settings = [o for o in overrides if o not in choices]
    unresolved = applied(from_files, settings)
    import_modules(unresolved)
    tentative = resolved(schema, unresolved)
    hints = _Hints(schema, tentative, groups, synonyms)
    accepted = [o for o in settings if _is_key(o, hints, from_files, problems)]
    values = _effective(schema, groups, members, from_files, accepted, problems)
    return Composed(schema, values, problems, groups, members, from_files, accepted, unread, hints)


def _is_member(override: Override, groups: Groups, problems: list[str]) -> bool:
    options = groups.members.get(override.key, [])
    if override.value in options or (override.value is None and override.key in groups.recipes):
        return True
    given = shortened(str(override.value))
    problems.append(
        f"{override.key}={given}: no such choice{_nearest(given, options)}; the choices are {', '.join(options)}"
    )
    return False


def _choice(override: Override, groups: Groups) -> str:
    """As Hydra takes it: + is for groups that the command does not choose from by itself."""
    text = override.text.lstrip("+")
    return text if override.key in groups.chosen else f"+{text}"


def _is_key(override: Override, hints: _Hints, from_files: Values, problems: list[str]) -> bool:
    if override.deletes and hints.keys.get(override.key) and not has(from_files, override.key):
        problems.append(
            f"~{override.key}: no file of the configuration gives {override.key}; its default holds already"
        )
        return False
    if _is_picked_elsewhere(override, hints, from_files):
        problems.append(
            f"{shortened(override.text)}: the chosen member of a group sets it; "
            f"choose one with {hints.members(override.key)}"
        )
        return False
    if override.key in hints.keys or (override.deletes and has(from_files, override.key)):
        return True
    mapping = hints.keys.get(override.key.rpartition(".")[0])
    if mapping is not None and mapping.takes_any_keys:
        return True
    if hints.is_below_unknown(override.key):  # its section's name is what is wrong, and is reported
        return True
    key = shortened(override.key)
    problems.append(f"unknown key '{key}'{hints.hint(key, override.value) or '; --help lists the keys'}")
    return False


def _is_picked_elsewhere(override: Override, hints: _Hints, from_files: Values) -> bool:
    """Whether it picks another class than the group's member does, whose values then would not fit: only classes of
    the user's own modules, which may have no member, are picked so."""
    key = hints.keys.get(override.key)
    known = key is not None and override.value in key.picks
    return known and override.value != get(from_files, override.key) and not get(hints.values, "modules")


def import_modules(values: Mapping[str, Any]) -> None:
    """Imports the modules that the key `modules` names: they may add choices to the tables. Raises InputError."""
    names = values.get("modules") or []
    for name in map(str, names if isinstance(names, list) else []):
        try:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ImportError("a module's name is meant, as in package.module")
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"modules: {name[:200]} cannot be imported: {error}") from error


def _effective(
    schema: type,
    groups: Groups,
    members: dict[str, str],
    from_files: Values,
    overrides: Sequence[Override],
    problems: list[str],
) -> Values:
    """The values without the keys that have no effect beside the others. Keys that the command line gives, or that
    had no effect in the files themselves either, are problems; what an override has switched off is left out."""
    values = resolved(schema, applied(from_files, overrides))
    idle = without_effect(schema, values)
    typed = [o.key for o in overrides if not o.deletes]
    layers = [resolved(schema, v) for v in (from_files, groups.members_alone(members))] if idle else []
    for key, reason in idle.items():
        given = [t for t in typed if t == key or t.startswith(f"{key}.")]
        problems += [f"{t} {reason}" for t in given]
        if not given and not any(has(layer, key) and key not in without_effect(schema, layer) for layer in layers):
            problems.append(f"{key}, which a file of the configuration gives, {reason}; ~{key} removes it")
    return applied(values, [Override(f"~{key}", key, None, deletes=True) for key in idle])


class _Hints:
    """Which keys there are, and what may be meant by one that is not.

    synonyms: other tools' names of keys, as "section.name" or "name" -> a key or key=value of ours, or a sentence.
    """

    def __init__(self, schema: type, values: Values, groups: Groups, synonyms: Mapping[str, str]) -> None:
        self.schema, self.values, self.groups, self.synonyms = schema, values, groups, {**HYDRA, **synonyms}
        self.keys = {key.path: key for key in keys_of(schema, values)}

    def is_below_unknown(self, key: str) -> bool:
        """Whether the class of the key's section is not known, because the name that picks it is wrong."""
        section = key.partition(".")[0]
        found = others_with(self.schema, key)
        return found is not None and self.keys[section].section is None

    def hint(self, key: str, value: object = None) -> str:
        """What else to write; "" where nothing is near."""
        own = others_with(self.schema, key)
        if own is not None and own[1]:
            path, names = own
            return f": {path}={get(self.values, path)} has no such key; {', '.join(names)} {_have(names)} it"
        if key in self.groups.members:
            return f" (did you mean '+{key}={value}'?)"
        target = self._synonym(key)
        if target is not None:
            return f" (did you mean '{target}'?)" if " " not in target else f": {target}"
        groups = [g for g in self.groups.chosen if "." not in key and value in self.groups.members.get(g, [])]
        if groups:
            return f" (did you mean '{groups[0]}={value}'?)"
        settable = [path for path, entry in self.keys.items() if entry.section is None]
        return _nearest(key, [*settable, *self.groups.chosen])

    def members(self, key: str) -> str:
        """The choices of the group that a key's section is."""
        group = key.partition(".")[0]
        return f"{group}={'|'.join(self.groups.members.get(group, []))}"

    def _synonym(self, key: str) -> str | None:
        """By the whole key, by its first part (hydra.*), or by its last; None where what it names is not there."""
        first, last = key.split(".")[0], key.split(".")[-1].replace("-", "_")
        for name in (key, f"{first}.*", last):
            target = self.synonyms.get(name)
            if target is not None and (" " in target or target.partition("=")[0] in {*self.keys, *self.groups.chosen}):
                return target
        return None


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _no_hint(key: str) -> str:
    return ""


def validate(values: Values, schema: type[T], hint: Callable[[str], str] = _no_hint) -> tuple[T | None, dict[str, str]]:
    """-> (the instance or None, {key: what is wrong with it}). hint: what an unknown key is answered with."""
    given = _without_missing(values)
    beyond = {path: "an integer of more than 64 bits is not supported" for path in _huge(given)}
    beyond.update(_undecoded(given))
    if beyond:
        return None, beyond
    try:
        return pydantic.TypeAdapter(schema).validate_json(json.dumps(given)), {}
    except pydantic.ValidationError as error:
        return None, dict(_describe(e, given, schema, hint) for e in error.errors())


def _huge(values: object, path: str = "") -> Iterator[str]:
    """The keys of integers with which arithmetic would end in an OverflowError, some of them far from here."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _huge(value, f"{path}.{key}".lstrip("."))
    elif isinstance(values, list):
        yield from {found for value in values for found in _huge(value, path)}
    elif isinstance(values, int) and abs(values) >= 1 << 63:
        yield path


def _undecoded(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of text that came as bytes which are not UTF-8, as in a file's name of another encoding."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _undecoded(inner, f"{key}.{name}".lstrip("."))
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            # a YAML's "\ud800" is half of a pair, for which no byte stands
            written = re.sub("[\ud800-\udc7f\udd00-\udfff]", lambda half: ascii(half[0])[1:-1], text)
            shown = written.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield key, f"{shown} is not UTF-8: rename it, or name a folder or a glob that it is in"


def _without_missing(values: object) -> Any:
    """`values` without the keys that still are ???: pydantic then says that they are required."""
    if not isinstance(values, dict):
        return values
    return {key: _without_missing(value) for key, value in values.items() if value != REQUIRED}


def _describe(error: ErrorDetails, values: Values, schema: type, hint: Callable[[str], str]) -> tuple[str, str]:
    """A pydantic error as (key, message); its location also names the branch taken in a union: left out."""
    path: list[str] = []
    node: Any = values
    for part in error["loc"]:
        missing = error["type"] == "missing" and part == error["loc"][-1]
        if isinstance(node, dict) and isinstance(part, str) and (part in node or missing):
            path.append(part)
            node = node.get(part)
    key, message = ".".join(path), error["msg"].removeprefix("Value error, ")
    if error["type"] == "unexpected_keyword_argument":
        return key, _unexpected(key, values, schema, hint)
    shown = "" if isinstance(error["input"], dict) else f" (got {shortened(repr(error['input']))})"
    return key, message + shown


def _unexpected(key: str, values: Values, schema: type, hint: Callable[[str], str]) -> str:
    """A key of a YAML file that the schema does not have; those of the command line were checked before."""
    picked = others_with(schema, key)
    if picked is not None:
        near = "" if picked[1] else hint(key)
        said = f"{picked[0]}={get(values, picked[0])} has no such key{near}"
    else:
        said = f"there is no such key{hint(key)}"
    if "." not in key and key not in pydantic_fields(schema):
        return f"{said}; does the file that gives it begin with '# @package _global_'?"
    return f"{said}; if an experiment gives it, ~{key} removes it"


def _nearest(key: str, names: Sequence[str]) -> str:
    """' (did you mean ...?)': by the whole key, else by its last part; "" where nothing is near."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    if not close:
        last = {name.split(".")[-1]: name for name in reversed(names)}
        close = [last[m] for m in difflib.get_close_matches(key.split(".")[-1], list(last), n=1, cutoff=0.65)]
    return f" (did you mean '{close[0]}'?)" if close else ""


def _concerns(key: str, faulty: Sequence[str]) -> bool:
    """Whether an override of this key made one of the faulty ones."""
    return any(f == key or f.startswith(key + ".") or key.startswith(f + ".") for f in faulty)
