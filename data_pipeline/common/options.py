"""The options of every command, under the names that Hydra gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.common.errors import InputError
from data_pipeline.common.overrides import CONFIG_DIR

OPTION_NAMES = ("--cfg", "--config-dir", "--help", "--info", "--multirun", "--shell-completion", "--version")
_FLAGS = {"--help": "help", "-h": "help", "--info": "info", "-i": "info", "--version": "version"}
_WITH_VALUE = {
    "--cfg": "cfg",
    "-c": "cfg",
    "--config-dir": "config_dir",
    "-cd": "config_dir",
    "--shell-completion": "completion",
    "-sc": "completion",
}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # Hydra's, which may follow --info
_ALL = {"--info": "all", "-i": "all"}  # the only one of them that is printed
_REFUSED = {
    (
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
    ): "is not supported: own groups and experiments are --config-dir DIR",
    ("--package", "-p"): "is not supported: --cfg job prints the whole configuration",
    ("--hydra-help", "--experimental-rerun"): "is not supported: see --help",
}
_MULTIRUN = ("--multirun", "-m")
_IGNORED = ("--run", "-r", "--resolve")  # what happens anyway


@dataclass(frozen=True)
class Options:
    """show: help, info, version or cfg, what is printed instead of running. completion: install=bash, say.
    multirun: overrides may have several values. arguments: overrides and --config-dir=DIR."""

    arguments: list[str]
    show: str | None = None
    completion: str | None = None
    multirun: bool = False


def parse_options(arguments: Sequence[str]) -> Options:
    """Raises InputError for an option of Hydra's that is not supported; unknown ones stay among the arguments."""
    left, rest = list(arguments), list[str]()
    show = completion = None
    multirun = False
    while left:
        name, equals, value = left.pop(0).partition("=")
        for names, refusal in _REFUSED.items():
            if name in names:
                raise InputError(f"{name} {refusal}")
        if name in _FLAGS:
            if name in _ALL and not equals and left and left[0] in _INFO:
                equals, value = " ", left.pop(0)
            if equals and value != _ALL.get(name):
                raise InputError(f"{name}{equals}{value} is not supported; {name} takes no value")
            show = _FLAGS[name] if show != "help" else show
        elif name in _WITH_VALUE:
            if not equals and not left:
                raise InputError(f"{name} needs a value; see --help")
            value = value if equals else left.pop(0)
            kind = _WITH_VALUE[name]
            if kind == "cfg":
                if value != "job":
                    raise InputError(f"{name} {value} is not supported; use {name} job")
                show = show or "cfg"
            elif kind == "completion":
                completion = value
            else:
                rest.append(CONFIG_DIR + value)
        elif name in _MULTIRUN:
            if equals:
                raise InputError(f"{name}={value} is not supported; {name} takes no value")
            multirun = True
        elif name in _IGNORED and equals:
            raise InputError(f"{name}={value} is not supported; {name} takes no value")
        elif name not in _IGNORED and name != "--local_rank":  # the deepspeed launcher's
            rest.append(name + equals + value)
    return Options(rest, show, completion, multirun)
