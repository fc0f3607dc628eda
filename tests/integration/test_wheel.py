"""conf/ is found from a checkout and from an installed wheel."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from data_pipeline.common.compose import conf_dir
from tests.helpers import ROOT, run_process


def test_conf_of_a_checkout():
    assert conf_dir() == ROOT / "conf"


def test_conf_of_an_installed_wheel(tmp_path):
    """Installed without its dependencies, which are taken from this environment by a path file."""
    built = run_process(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.split("/")[0] not in ("pretraining", "data_pipeline") and ".dist-info" not in n]
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (here,) = {p for p in map(Path, sys.path) if (p / "hydra").is_dir()}
    (site / "dependencies.pth").write_text(str(here))
    done = subprocess.run(
        [str(tmp_path / "env/bin/python"), "-m", "pretraining.train", "train.stepz=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "did you mean 'train.steps'" in done.stderr, done.stderr
    where = subprocess.run(
        [str(tmp_path / "env/bin/python"), "-c", "import data_pipeline.common.compose as c; print(c.conf_dir())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
