"""A copy of the code and of the user's own files beside the run: a job that waits in a queue for days runs what was
submitted, whatever is edited meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from data_pipeline.common.compose import conf_dir
from data_pipeline.common.errors import InputError

PACKAGES = ("pretraining", "data_pipeline")
OWN_GROUPS = "config_dirs"  # the folder of a snapshot that has the user's own groups
LARGEST = 1 << 22  # bytes of a file beside a user's modules that is still taken for code


def slurm_dir() -> Path:
    """The folder slurm/: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "slurm" if (package / "slurm").is_dir() else package.parent / "slurm"


def take_snapshot(parent: Path, modules: Sequence[str], config_dirs: Sequence[str]) -> Path:
    """Copies what the job runs into a folder below `parent` that is named by its content -> the folder.

    modules: the user's own, imported already. config_dirs: folders of the user's own groups. Raises InputError.
    """
    files = {**_module_files(modules), **_package_files(), **_group_files(config_dirs)}
    target = parent / f"code-{_hash(files)}"
    if target.is_dir():
        return target
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".code-", dir=parent))
        for name, source in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary / name)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's is the owner's alone
        os.rename(temporary, target)
    except OSError as error:
        if target.is_dir():  # another submission was faster
            shutil.rmtree(temporary)
            return target
        raise InputError(f"the code cannot be copied to {target}: {error}") from error
    return target


def code_version() -> str:
    """The commit that the code is of, with "+changes" where files differ from it; "" where no git says so."""
    here = Path(__file__).resolve().parents[2]
    command = ("git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _package_files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in PACKAGES:
        root = Path(sys.modules[package].__file__ or "").resolve().parent
        found |= _tree(root, package)
    inside = Path(sys.modules["data_pipeline"].__file__ or "").resolve().parent
    if not conf_dir().is_relative_to(inside):
        found |= _tree(conf_dir(), "conf")
    return found | _tree(slurm_dir(), "slurm")


def _module_files(modules: Sequence[str]) -> dict[str, Path]:
    """The modules, the packages that they are in, and what they have imported from the folders that these lie in."""
    found: dict[str, Path] = {}
    for folder, name in {_root(module) for module in modules}:
        if _is_installed(folder):
            continue
        if (folder / name / "__init__.py").is_file():
            found |= _tree(folder / name, name)
        for path in _loaded(folder):
            found[path.relative_to(folder).as_posix()] = path
    return found


def _root(module: str) -> tuple[Path, str]:
    """-> (the folder that it was imported from, its package's or its own name)."""
    top = module.partition(".")[0]
    origin = sys.modules[top].__file__
    if origin is None:  # a package without __init__.py
        return Path(next(iter(sys.modules[top].__path__))).resolve().parent, top
    path = Path(origin).resolve()
    return (path.parents[1] if path.name == "__init__.py" else path.parent), top


def _loaded(folder: Path) -> Iterator[Path]:
    """The files of all modules that were imported from below `folder`, installed ones and our own left out."""
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or module.__spec__ is None or name.partition(".")[0] in PACKAGES:
            continue
        origin = module.__spec__.origin or ""
        path = Path(origin).resolve()
        if path.suffix == ".py" and path.is_relative_to(folder) and not _is_installed(path):
            yield path


def _is_installed(path: Path) -> bool:
    """Whether it is the interpreter's or a package's, which a job finds as we do."""
    folders = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _group_files(config_dirs: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for number, folder in enumerate(config_dirs):
        root = Path(folder)
        found |= {f"{OWN_GROUPS}/{number}/{f.relative_to(root).as_posix()}": f for f in root.rglob("*.yaml")}
    return found


def _tree(root: Path, name: str) -> dict[str, Path]:
    """The files below `root`, by their names below `name`; hidden ones, caches and large ones left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts) or not path.is_file():
            continue
        if path.stat().st_size <= LARGEST:
            found["/".join((name, *parts))] = path
    return found


def _hash(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        data = files[name].read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode(errors="surrogateescape") + data)
    return digest.hexdigest()[:12]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
