"""Shell completion: the scripts are Hydra's, what they ask for is answered from groups and schema."""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.common.compose import Composed, composed
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import spelled
from data_pipeline.common.options import OPTION_NAMES, parse_options
from data_pipeline.common.schema import REQUIRED, get

SHELLS = ("bash", "fish", "zsh")


def run_completion(action: str, complete: Callable[[str], list[str]]) -> None:
    """install=SHELL and uninstall=SHELL print a script; query=SHELL answers one, for the line in $COMP_LINE.

    complete: the part of a line after the command's name -> what its last word may become.
    """
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra._internal.core_plugins.fish_completion import FishCompletion
    from hydra.plugins.completion_plugin import CompletionPlugin

    verb, _, shell = action.partition("=")
    if verb not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise InputError(f"-sc {action}: install, uninstall or query, with {', '.join(SHELLS)}, as in install=bash")
    base: type[CompletionPlugin] = FishCompletion if shell == "fish" else BashCompletion  # zsh runs bash's

    class Plugin(base):  # type: ignore[valid-type,misc]
        def _query(self, config_name: str | None, line: str) -> list[str]:
            return complete(line)

    plugin = Plugin(config_loader=None)
    if verb == "query":
        plugin.query(None)
    else:
        plugin.install() if verb == "install" else plugin.uninstall()


def completions(config_name: str, schema: type, line: str) -> list[str]:
    """What the last word of `line` may become; nothing where the words before it make no configuration."""
    words = line.split()
    word = "" if not words or line.endswith(" ") else words.pop()
    if word.startswith("-"):
        return [option for option in OPTION_NAMES if option.startswith(word)]
    if words and words[-1] in ("--cfg", "-c"):
        return ["job"]
    try:
        options = parse_options(words)
        found = composed(config_name, options.arguments, schema)
    except InputError:
        return []
    return _values(found, word) if "=" in word else _names(found, word)


def _names(found: Composed, word: str) -> list[str]:
    """Groups and keys, up to the next dot."""
    sign = word[: len(word) - len(word.lstrip("+~"))]
    groups = found.groups.members if sign == "+" else found.groups.chosen
    keys = [path if key.section is None else f"{path}." for path, key in found.keys.items()]
    names = [f"{group}=" for group in groups] + [key if key.endswith(".") else f"{key}=" for key in keys]
    begin = word[len(sign) :]
    rest = [name for name in names if name.startswith(begin)]
    cut = [begin + _until_dot(name[len(begin) :]) for name in rest if name != begin]
    return sorted({sign + name for name in cut})


def _until_dot(text: str) -> str:
    head, dot, _ = text.partition(".")
    return head + dot


def _values(found: Composed, word: str) -> list[str]:
    from hydra.plugins.completion_plugin import CompletionPlugin

    name, _, begin = word.partition("=")
    key = name.lstrip("+~")
    if begin.startswith(("/", ".", "~")):
        return [f"{name}={file}" for file in sorted(CompletionPlugin.complete_files(begin))]
    entry = found.keys.get(key)
    if key in found.groups.members:
        options = found.groups.members[key]
    elif entry is None:
        options = []
    else:
        value = get(found.whole, key)
        options = entry.choices or ([] if value in (REQUIRED, None) else [spelled(value).replace(" ", "")])
    return [f"{name}={option}" for option in options if option.startswith(begin)]
