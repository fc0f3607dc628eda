"""What a command says of itself: --help, --cfg job and --info."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from data_pipeline.common.compose import Composed
from data_pipeline.common.fields import spelled
from data_pipeline.common.schema import REQUIRED, Key, get, summary

_HELP = "  --help, -h              this text"
_OPTIONS = """  --cfg job, -c job       print the composed configuration
  --info, -i              print versions, folders and the members chosen
  --version               print the version
  -sc install=bash        print what eval makes shell completion of: eval "$(COMMAND -sc install=bash)";
                          also zsh and fish, and uninstall=
"""
_CONFIG_DIR = "  --config-dir DIR, -cd   a folder with groups of your own, as in DIR/"
_PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers", "hydra-core", "pydantic")


def help_text(about: str, composed: Composed) -> str:
    """Groups with their members, and every key of the chosen ones: value, values, meaning, a line each."""
    parts = [about, _options(composed)]
    groups = [f"  {name}={'|'.join(composed.groups.members[name])}" for name in composed.groups.chosen]
    if groups:
        parts.append("\n".join(["Groups:", *groups, ""]))
    parts.append("\n".join(["Keys, as key=value (values): meaning", *_keys(composed), ""]))
    return "\n".join(parts)


def _options(composed: Composed) -> str:
    """Every option; those about groups only where the command has groups."""
    if not composed.groups.chosen:
        return "\n".join(["Options:", _HELP, _OPTIONS])
    group = composed.groups.chosen[0]
    other = next(m for m in composed.groups.members[group] if m != composed.members.get(group))
    own = f"{(composed.groups.recipes or [group])[0]}/mine.yaml"
    choices = f"; with choices, as in {group}={other} --help, their keys"
    return "\n".join(["Options:", _HELP + choices, _CONFIG_DIR + own, _OPTIONS])


def _keys(composed: Composed) -> Iterator[str]:
    whole = composed.whole
    for key in sorted(composed.keys.values(), key=lambda key: "." in key.path or key.section is not None):
        if key.section is None:
            yield f"  {key_line(key, get(whole, key.path))}"
        else:
            member = composed.members.get(key.path)
            yield "\n".join(("", f"{key.path}{f'={member}' if member else ''}: {summary(key.section) or key.meaning}"))


def key_line(key: Key, value: object) -> str:
    """optimizer.lr=0.0006 (number above 0): peak of the learning rate."""
    shown = "(required)" if value == REQUIRED else f"={spelled(value)}"
    values = ", ".join([key.values, *map(str, key.conditions)])
    return f"{key.path}{shown} ({values}): {key.meaning}"


def config_text(composed: Composed) -> str:
    """The whole configuration as YAML; ??? where a value is still to be given."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.create(composed.whole)))


def version_text() -> str:
    return f"pretraining {_version('pretraining')}"


def info_text(composed: Composed) -> str:
    """Versions, folders of the configuration, members chosen."""
    versions = [f"  {package} {_version(package)}" for package in _PACKAGES]
    folders = [f"  {folder}" for folder in composed.groups.folders]
    chosen = {group: composed.members.get(group) for group in composed.groups.chosen} | composed.members
    members = [f"  {group}={member}" for group, member in chosen.items() if member not in (None, "None")]
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return "\n".join(
        [version_text(), python, "Packages:", *versions, "Configuration:", *folders, "Members chosen:", *members]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
