"""How every command reads its configuration: Hydra groups, composed into one typed dataclass.

Every error of a command line is reported in one message, with the nearest valid key, before torch is imported.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from data_pipeline.common.errors import InputError

T = TypeVar("T")


def conf_dir() -> Path:
    """The folder conf/: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def compose_config(config_name: str, overrides: Sequence[str], schema: type[T]) -> T:
    """`conf/<config_name>.yaml` with the Hydra `overrides`, as an instance of `schema`.

    Where `schema` has a method `faults() -> list[str]`, it is asked for contradictions across groups.
    Raises InputError with every fault found.
    """
    composer = _Composer(config_name)
    faults, accepted = composer.check(overrides)
    config, type_faults = _validate(composer.compose(accepted), schema)
    if type_faults:  # go on without the faulty values, so that contradictions elsewhere are told as well
        faults += [f"{key}: {message}" for key, message in type_faults]
        faulty = [key for key, _ in type_faults]
        accepted = [o for o in accepted if not _concerns(o.split("=", 1)[0], faulty, composer.group_names)]
        config, _ = _validate(composer.compose(accepted), schema)
    if config is not None and hasattr(config, "faults"):
        faults += config.faults()
    if faults:
        raise InputError("\n".join(faults) if len(faults) == 1 else "\n".join(f"- {f}" for f in faults))
    assert config is not None
    return config


def groups_help(config_name: str) -> str:
    """The groups that `config_name` can choose from and its keys with their defaults, for `--help`."""
    from omegaconf import OmegaConf

    composer = _Composer(config_name)
    used = [name for name in composer.groups if name in composer.group_names]
    lines = [f"  {name}={'|'.join(composer.groups[name])}" for name in used]
    groups = "Groups:\n" + "\n".join(lines) + "\n\n" if lines else ""
    return groups + "Keys and defaults:\n" + OmegaConf.to_yaml(composer.compose([]))


class _Composer:
    """The Hydra side: which groups and keys there are, and composing."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        folders = sorted(p for p in conf_dir().iterdir() if p.is_dir())
        self.groups = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in folders}
        self.group_names = self._groups_of_config()
        self.keys: list[str] = []

    def compose(self, overrides: Sequence[str]) -> Any:
        from hydra import compose, initialize_config_dir

        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(self.config_name, list(overrides))

    def check(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
        """-> (faults, the overrides without a fault). Group choices come first: they decide the keys."""
        faults: list[str] = []
        parsed = [_parse(o, faults) for o in overrides]
        choices = [p for p in parsed if p is not None and p.key in self.group_names]
        good = [p.text for p in choices if self._check_choice(p, faults)]
        self.keys = _flat_keys(self.compose(good))
        values = [p for p in parsed if p is not None and p.key not in self.group_names]
        good += [p.text for p in values if self._check_key(p, faults)]
        return faults, good

    def _check_choice(self, override: _Override, faults: list[str]) -> bool:
        options = self.groups[override.key]
        if override.value in options:
            return True
        faults.append(
            f"{override.key}={override.value}: no such choice{_nearest(str(override.value), options)}; "
            f"there are {', '.join(options)}"
        )
        return False

    def _check_key(self, override: _Override, faults: list[str]) -> bool:
        if override.key in self.keys:
            return True
        names = [*self.keys, *self.group_names]
        faults.append(f"unknown key '{override.key}'{_nearest(override.key, names)}")
        return False

    def _groups_of_config(self) -> list[str]:
        from omegaconf import OmegaConf

        values: Any = OmegaConf.load(conf_dir() / f"{self.config_name}.yaml")
        defaults = values.get("defaults", [])
        entries = [next(iter(d)) for d in defaults if not isinstance(d, str)]
        return [str(e).replace("optional ", "").replace("override ", "").lstrip("/") for e in entries]


@dataclass(frozen=True)
class _Override:
    text: str
    key: str
    value: Any


def _parse(text: str, faults: list[str]) -> _Override | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        faults.append(f"{text!r} is not an override of the form key=value: {str(error).splitlines()[0]}")
        return None
    if "${" in text:
        faults.append(f"{text!r}: interpolations are not offered: they could bring secrets into config.yaml")
        return None
    if "@" in text.split("=")[0]:
        faults.append(f"{text!r}: a group's package cannot be changed")
        return None
    if override.is_sweep_override():
        faults.append(f"{text!r}: a sweep is not offered; quote a value that has commas")
        return None
    if override.is_delete():
        return _Override(f"~{override.key_or_group}", override.key_or_group, None)
    return _Override(text.lstrip("+"), override.key_or_group, override.value())


def _validate(config: Any, schema: type[T]) -> tuple[T | None, list[tuple[str, str]]]:
    """-> (the instance or None, [(key, message)])."""
    from omegaconf import OmegaConf

    values = _without_missing(OmegaConf.to_container(config, resolve=True))
    try:
        return pydantic.TypeAdapter(schema).validate_json(json.dumps(values)), []
    except pydantic.ValidationError as error:
        return None, [_describe(e, values) for e in error.errors()]


def _without_missing(values: Any) -> Any:
    """`values` without the keys that still are ???: pydantic then says that they are required."""
    if not isinstance(values, dict):
        return values
    return {key: _without_missing(value) for key, value in values.items() if value != "???"}


def _describe(error: Any, values: Any) -> tuple[str, str]:
    """A pydantic error as (key, message); its location also names the branch taken in a union: left out."""
    path, node = [], values
    for part in error["loc"]:
        missing = error["type"] == "missing" and part == error["loc"][-1]
        if isinstance(node, dict) and isinstance(part, str) and (part in node or missing):
            path.append(part)
            node = node.get(part)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "unexpected_keyword_argument":
        message = f"no such key in this choice; if an experiment sets it, ~{'.'.join(path)} removes it"
    shown = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return ".".join(path), message + shown


def _flat_keys(config: Any, prefix: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += _flat_keys(child, f"{prefix}{key}.")
    return keys


def _nearest(key: str, names: Sequence[str]) -> str:
    """' (did you mean ...?)': by the whole key, else by its last part."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    if not close:
        last = {name.split(".")[-1]: name for name in reversed(names)}
        close = [last[m] for m in difflib.get_close_matches(key.split(".")[-1], list(last), n=1, cutoff=0.6)]
    close = close or difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _concerns(key: str, faulty: Sequence[str], groups: Sequence[str]) -> bool:
    """Whether an override of this key made one of the faulty ones. The choice of a group decides which keys there
    are: it stays."""
    return key not in groups and any(f == key or f.startswith(key + ".") or key.startswith(f + ".") for f in faulty)
