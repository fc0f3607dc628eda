"""The Hydra side of a configuration: which groups and members there are, in which folders, and composing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.interpolation import explained, without_resolvers
from data_pipeline.common.schema import Values
from data_pipeline.common.yaml_files import checked_text


def conf_dir() -> Path:
    """The folder conf/: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


class Groups:
    """conf/<config_name>.yaml composed, and the members of each group: of those in conf/ that it chooses from, and of
    the user's own in the folders of --config-dir.

    chosen: the groups that this command chooses from. recipes: those of them whose members set keys of other groups,
    experiments for example.
    """

    def __init__(self, config_name: str, config_dirs: Sequence[str] = ()) -> None:
        self.config_name = config_name
        self.folders = [conf_dir(), *(_config_dir(d) for d in config_dirs)]
        defaults = self._defaults()
        others = {f.relative_to(self.folders[0]).parent.as_posix() for f in self.folders[0].rglob("*.yaml")}
        self.members: dict[str, list[str]] = {}
        for file in _unique(self.folders):
            group = file.parent.as_posix()
            if group in defaults or group not in others:
                self.members.setdefault(group, []).append(file.stem)
        self.members.pop(".", None)
        self.chosen, self.recipes = list(defaults), [group for group, member in defaults.items() if member is None]

    def compose(self, choices: Sequence[str]) -> tuple[Values, dict[str, str]]:
        """-> (what the YAML files say with these choices, the member chosen of each group). Raises InputError.

        Interpolations stand there as they are written.
        """
        import yaml
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf import OmegaConf, open_dict
        from omegaconf.errors import OmegaConfBaseException

        searched = ",".join(f'"file://{folder}"' for folder in self.folders[1:])
        try:
            with initialize_config_dir(str(self.folders[0]), version_base="1.3"), without_resolvers():
                config = compose(
                    self.config_name, [*choices, f"hydra.searchpath=[{searched}]"], return_hydra_config=True
                )
            members = {str(g): str(m) for g, m in config.hydra.runtime.choices.items() if g in self.members}
            with open_dict(config):
                del config["hydra"]
            return OmegaConf.to_container(config, resolve=False), members  # type: ignore[return-value]
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError, ValueError) as error:
            local = any(f"@{recipe}." in str(error) for recipe in self.recipes)
            hint = "\nis '# @package _global_' the first line of the file?" if local else ""
            raise InputError(f"the configuration cannot be composed: {explained(error)}{hint}") from error

    def members_alone(self, members: dict[str, str]) -> Values:
        """What these members say without recipes and additional groups."""
        own = [f"{group}={member}" for group, member in members.items() if group in self.chosen]
        return self.compose([o for o in own if o.partition("=")[0] not in self.recipes])[0]

    def _defaults(self) -> dict[str, str | None]:
        """group -> its default member, in the order of conf/<config_name>.yaml."""
        from omegaconf import OmegaConf

        values: Any = OmegaConf.to_container(OmegaConf.load(self.folders[0] / f"{self.config_name}.yaml"))
        entries = [entry for entry in (values or {}).get("defaults", []) if isinstance(entry, dict)]
        return {str(group): member for entry in entries for group, member in entry.items()}


def _config_dir(name: str) -> Path:
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"--config-dir={name}: there is no such folder")
    return folder


def _unique(folders: Sequence[Path]) -> Iterator[Path]:
    """Every YAML file, relative to its folder. Raises InputError where two have one name, Hydra would take the first
    without a word, and where one of the user's own is no YAML that a configuration may be."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder)
            if name in seen:
                raise InputError(f"--config-dir={folder}: {name} is the name of a file in {seen[name]}; rename it")
            if folder != conf_dir():
                checked_text(file)
            seen[name] = folder
            yield name
