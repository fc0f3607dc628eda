"""pretrain-submit: what is submitted, what is refused, and that a job runs what was submitted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pretraining.cluster.script import bash_quoted, hydra_quoted
from pretraining.config import RunConfig, load_config
from tests.cluster.conftest import Site, run_script
from tests.helpers import ROOT, TINY, command, pretrain_process, run_process

CLUSTER = ("cluster=slurm", "cluster.nodes=2", "cluster.tasks_per_node=2", "cluster.time_limit=2:00:00")


def run(*overrides: str) -> int:
    return command("pretraining.commands.submit", *overrides)


@pytest.fixture
def asked(corpus: Path, tmp_path: Path) -> list[str]:
    """A command line without faults."""
    return [*TINY, f"data.path={corpus}", f"run_dir={tmp_path}/run", *CLUSTER]


def test_the_exact_submission(site: Site, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("cluster.partition=gpu", "cluster.account=alpha", "cluster.gpus_per_node=2", "cluster.gpu_type=a100")
    options = "cluster.options=['--constraint=a b','--exclusive']"
    assert run(*asked, *more, options, "cluster.memory=100G", "cluster.cpus_per_task=8", "cluster.signal=TERM") == 0
    script = tmp_path / "run/slurm/submissions/001/job.sbatch"
    assert site.submitted == [["sbatch", "--parsable", str(script)]]
    lines = script.read_text().splitlines()
    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")] == [
        f"--job-name={lines[1].partition('=')[2]}",
        "--partition=gpu",
        "--account=alpha",
        "--nodes=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=8",
        "--gpus-per-node=a100:2",
        "--mem=100G",
        "--time=2:00:00",
        "--signal=B:USR1@300",
        "--open-mode=append",
        f"--chdir={os.getcwd()}",
        f"--output={tmp_path}/run/slurm/batch-%j.log",
        "--requeue",
        '--constraint="a b"',
        "--exclusive",
    ]
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("#SBATCH --job-name=run-")
    given = run_script(script)
    assert given == [*TINY, asked[len(TINY)], f"run_dir={tmp_path}/run"]
    assert "submitted job 101 (run-" in capsys.readouterr().out
    assert (script.parent / "jobs").read_text() == "101\n"


def test_the_environment_of_the_job(site: Site, asked: list[str], tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text("export FROM_SITE=1\n")
    assert (
        run(
            *asked,
            "cluster.environment_modules=[cuda/12.4]",
            f"cluster.setup={setup}",
            "cluster.container=apptainer",
            "cluster.image=x y.sif",
            f"cluster.mounts=[{tmp_path}:/data,/scratch]",
            "cluster.check=exclude",
            "cluster.requeue=false",
            "cluster.launcher=torchrun",
            "cluster.cpus_per_task=3",
            "cluster.signal=TERM",
            "cluster.srun_options=['--cpu-bind=map_cpu:0,1','--label']",
            "cluster.host_suffix=i",
        )
        == 0
    )
    folder = tmp_path / "run/slurm/submissions/001"
    (site.scripts / "pretrain.sbatch").write_text("")
    code = next((tmp_path / "run/slurm").glob("code-*"))
    (code / "slurm/pretrain.sbatch").write_text("env -0 | grep -z ^PRETRAIN_\n")
    done = subprocess.run(
        ["bash", str(folder / "job.sbatch")], capture_output=True, check=True, env={**os.environ, "PRETRAIN_SRUN": "x"}
    )
    found = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    assert found == {
        "PRETRAIN_CODE": str(code),
        "PRETRAIN_PYTHON": "python",  # the container's
        "PRETRAIN_SETUP": str(folder / "setup.sh"),
        "PRETRAIN_LAUNCHER": "torchrun",
        "PRETRAIN_RANKS_PER_NODE": "2",
        "PRETRAIN_CONTAINER": "apptainer",
        "PRETRAIN_IMAGE": "x y.sif",
        "PRETRAIN_MOUNTS": f"{tmp_path}:/data,/scratch:/scratch",
        "PRETRAIN_SIGNAL": "TERM",
        "PRETRAIN_SRUN": "--cpu-bind=map_cpu:0,1 --label",
        "PRETRAIN_HOST_SUFFIX": "i",
        "PRETRAIN_REQUEUE": "none",
        "PRETRAIN_MAX_RESTARTS": "50",
        "PRETRAIN_CHECK": "exclude",
    }
    text = (folder / "job.sbatch").read_text()  # a task of torchrun is a node
    assert "#SBATCH --ntasks-per-node=1\n#SBATCH --cpus-per-task=6\n" in text
    assert (folder / "setup.sh").read_text() == "module load cuda/12.4\nexport FROM_SITE=1\n"


NASTY = [
    "a b",
    "it's",
    'say "x"',
    "$HOME $(touch {stamp}) `touch {stamp}`",
    "; touch {stamp} &",
    "[a,b] {c: d}",
    "new\nline",
    "cr\r\nlf\ttab",
    "back\\slash \\' $'x'",
    "%j %% * ? ~ ! #SBATCH --nodes=9",
    "données",
]


@pytest.mark.parametrize("text", NASTY)
def test_overrides_reach_the_script_unchanged_and_run_nothing(text: str, tmp_path: Path) -> None:
    text = text.replace("{stamp}", str(tmp_path / "stamp"))
    script = tmp_path / "script"
    script.write_text(f"printf '%s\\0' {bash_quoted(text)}\n")
    assert run_script(script) == [text] and not (tmp_path / "stamp").exists()
    assert "\n" not in bash_quoted(text) and "\r" not in bash_quoted(text)


def test_overrides_reach_hydra_unchanged(site: Site, asked: list[str], tmp_path: Path) -> None:
    """The whole way: command line, rendered script, real bash, Hydra."""
    wild = "a 'b' \"c\" $(touch x) `y` [z] {w} ; & % * ~ \\ é \n end"
    quoted = "'" + wild.replace("'", "\\'") + "'"
    words = [f"tracking.run_name={quoted}", f"tracking.tags=[{quoted},b]", "train.freeze=['*embedding*']"]
    assert run(*asked, *words) == 0
    given = run_script(tmp_path / "run/slurm/submissions/001/job.sbatch")
    config = load_config(given, 4)
    assert config.tracking.run_name == wild and config.tracking.tags == [wild, "b"]
    assert config.train.freeze == ["*embedding*"] and config.run_dir == str(tmp_path / "run")
    saved = yaml.safe_load((tmp_path / "run/slurm/submissions/001/config.yaml").read_text())
    assert saved["tracking"]["run_name"] == wild


@pytest.mark.parametrize("name", ["run", "a b", "100%", "x,y", "[z]", "~tilde", "é"])
def test_odd_folders_are_named_to_hydra_as_they_are(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    assert load_config(["data.path=x", f"run_dir={hydra_quoted(path)}"]).run_dir == path


def test_a_dry_run_prints_the_script_and_changes_nothing(
    site: Site, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run(*asked, "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in said and f"run_dir={tmp_path}/run" in said and "disk" in said
    new = set(tmp_path.rglob("*")) - set(before)
    assert {path.parent for path in new} <= {site.folder} and site.submitted == []


def test_all_problems_are_listed_at_once(
    site: Site, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.answers(test_only=(1, "sbatch: error: Batch job submission failed: Invalid qos specification"))
    code = run(
        *TINY,
        "data.path=nowhere",
        f"run_dir={tmp_path}/run",
        "train.stepz=3",
        "optimizer.lr=fast",
        "cluster=slurm",
        "cluster.nodes=3",
        "cluster.time_limit=2-00:00:00",
        "cluster.account=gamma",
    )
    said = capsys.readouterr().err
    assert code == 2 and site.submitted == [] and not (tmp_path / "run").exists()
    for part in (
        "unknown key 'train.stepz' (did you mean 'train.steps'?)",
        "optimizer.lr: Input should be a valid number",
        "train.global_batch_size=8 is not divisible by train.micro_batch_size=2 x 3 data-parallel ranks",
        "nowhere/manifest.json is missing",
        "Invalid qos specification",
        "cluster.time_limit=2-00:00:00 is beyond the partition's 1-00:00:00",
        "cluster.account=gamma is none of",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition=nowhere", "cluster.partition=nowhere is none of cpu, gpu"),
        ("cluster.gpus_per_node=8", "cluster.gpus_per_node=8 is more than a node has: 4"),
        ("cluster.cpus_per_task=64", "2 ranks x cluster.cpus_per_task=64 is more than a node has: 64"),
        ("cluster.memory=600G", "cluster.memory=600G (MB) is more than a node has: 512000"),
        ("cluster.nodes=8", "cluster.nodes=8, but 4 nodes have what is asked of each"),
        ("cluster.qos=urgent", "cluster.qos=urgent is none of long, normal"),
        ("cluster.options=['--nodes=9']", "--nodes is set by cluster.nodes"),
        ("cluster.options=['-N 9']", "an option of sbatch is meant"),
        ("cluster.time_limit=1:2:3:4", "minutes, hours:minutes:seconds"),
        ("cluster.lead_seconds=7200", "cluster.lead_seconds=7200 is not below cluster.time_limit"),
        ("cluster.container=pyxis", "cluster.container=pyxis needs cluster.image"),
        ("inspect=2", "inspect prints samples"),
        ("train.freeze=['*nothing*']", "train.freeze: no parameter is named *nothing*"),
        ("model.init_from=/nowhere", "/nowhere"),
        ("cluster.measured=/nowhere", "cluster.measured=/nowhere: it has no metrics.jsonl"),
        ("train.resume=/nowhere", "train.resume=/nowhere: no such checkpoint"),
        ("data.path=null", "data.path is missing"),
        ("run_dir=/proc/nothing", "cannot be written to"),
    ],
)
def test_each_problem_is_told(
    override: str, said: str, site: Site, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["cluster.tasks_per_node=null"] if "gpus" in override else []
    assert run(*asked, override, *tasks, "dry_run=true") == 2
    assert said in capsys.readouterr().err


def test_a_sweep_beyond_the_sites_arrays(site: Site, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    site.answers(scontrol=(0, "MaxArraySize = 2"))
    assert run(*asked, "--multirun", "train.seed=1,2,3", "dry_run=true") == 2
    assert "a sweep of 3 runs is beyond MaxArraySize=2" in capsys.readouterr().err


def test_what_does_not_answer_is_not_checked(site: Site, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    silent = {name: (1, "error: Unable to contact slurm controller") for name in ("sinfo", "scontrol", "squeue")}
    site.answers(sacctmgr=(0, ""), test_only=(1, "sbatch: error: Unable to contact slurm controller"), **silent)
    assert run(*asked, "dry_run=true") == 0
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if "  not checked  " in line]) >= 5
    for name in ("sbatch", "sinfo", "scontrol", "sacctmgr", "squeue"):
        (site.folder / name).unlink()
    os.environ["PATH"] = f"{site.folder}:/nowhere"
    assert run(*asked, "dry_run=true") == 0
    assert "there is no sinfo here" in capsys.readouterr().out


def test_none_is_no_cluster(site: Site, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*asked, "cluster=none") == 2
    assert "cluster=none takes no job: choose cluster=slurm" in capsys.readouterr().err
    assert command("pretraining.train", "cluster=slurm") == 2
    assert "cluster=... is for pretrain-submit" in capsys.readouterr().err


def test_a_site_of_ones_own(site: Site, asked: list[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "cluster").mkdir(parents=True)
    (mine / "experiment").mkdir()
    (mine / "cluster/here.yaml").write_text("name: slurm\npartition: gpu\naccount: alpha\nnodes: 2\n")
    assert run(f"--config-dir={mine}", *asked, "cluster=here") == 0
    text = (tmp_path / "run/slurm/submissions/001/job.sbatch").read_text()
    assert "#SBATCH --partition=gpu\n" in text and "#SBATCH --account=alpha\n" in text and "cluster" not in text
    code = next((tmp_path / "run/slurm").glob("code-*"))
    assert f"--config-dir={code}/config_dirs/0" in run_script(tmp_path / "run/slurm/submissions/001/job.sbatch")


def test_a_recipe_that_sets_keys_of_the_cluster_is_refused(
    site: Site, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job would compose it without them."""
    mine = tmp_path / "mine"
    (mine / "experiment").mkdir(parents=True)
    (mine / "experiment/big.yaml").write_text("# @package _global_\ncluster: {nodes: 2}\n")
    assert run(f"--config-dir={mine}", *asked, "experiment=big") == 2
    assert "pretrain itself would say: cluster: there is no such key" in capsys.readouterr().err
    (mine / "experiment/big.yaml").write_text("# @package _global_\ntrain: {seed: '${cluster.nodes}'}\n")
    assert run(f"--config-dir={mine}", *asked, "experiment=big") == 2
    (mine / "cluster").mkdir()
    (mine / "cluster/here.yaml").write_text("# @package _global_\ncluster: {name: slurm}\ntrain: {precision: bf16}\n")
    assert run(f"--config-dir={mine}", *asked, "cluster=here") == 2
    assert "sets train.precision=bf16, a key of the run" in capsys.readouterr().err


def test_a_chain_is_queued_at_once(site: Site, asked: list[str], tmp_path: Path) -> None:
    assert run(*asked, "cluster.chain=2") == 0
    text = (tmp_path / "run/slurm/submissions/001/job.sbatch").read_text()
    assert len(site.submitted) == 3
    assert "#SBATCH --dependency=singleton\n" in text and "#SBATCH --no-requeue\n" in text
    assert "PRETRAIN_REQUEUE=chain" in text
    assert (tmp_path / "run/slurm/submissions/001/jobs").read_text() == "101\n102\n103\n"


def test_a_sweep_is_an_array(site: Site, asked: list[str], tmp_path: Path) -> None:
    sweep = ["--multirun", "optimizer.lr=1e-3,2e-3", "tracking.run_name='b c','it'", "cluster.at_once=2"]
    assert run(*asked, *sweep) == 0
    folder = tmp_path / "run/slurm/submissions/001"
    text = (folder / "job.sbatch").read_text()
    assert "#SBATCH --array=0,1,2,3%2\n" in text and "batch-%A_%a.log" in text
    assert f"PRETRAIN_SWEEP={folder}/sweep" in text and "optimizer.lr" not in text
    lines = [shlex.split(line) for line in (folder / "sweep").read_text().splitlines()]
    place = f"run_dir={tmp_path}/run"
    assert lines[0] == ["optimizer.lr=0.001", "tracking.run_name='b c'", f"{place}/lr-0.001_run_name-b_c"]
    assert [line[-1] for line in lines[1:]] == [
        f"{place}/lr-{lr}_run_name-{name}" for lr, name in (("0.001", "it"), ("0.002", "b_c"), ("0.002", "it"))
    ]
    config = load_config([*run_script(folder / "job.sbatch"), *lines[0]], 4)
    assert config.optimizer.lr == 1e-3 and config.tracking.run_name == "b c"


def test_runs_of_a_sweep_that_are_done_are_left_out(
    site: Site, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [a for a in asked if not a.startswith(("cluster", "run_dir"))]
    for rate in ("0.001", "0.002"):
        place = f"run_dir={tmp_path}/run/lr-{rate}"
        assert pretrain_process(*ours, "train.steps=2", f"optimizer.lr={rate}", place).returncode == 0
        assert run(*asked, "train.steps=2", "--multirun", "optimizer.lr=1e-3,2e-3,3e-3,4e-3") == 0
    texts = [p.read_text() for p in sorted((tmp_path / "run/slurm/submissions").glob("*/job.sbatch"))]
    assert "#SBATCH --array=1,2,3\n" in texts[0] and "#SBATCH --array=2,3\n" in texts[1]
    assert run(*asked, "train.steps=2", "--multirun", "optimizer.lr=1e-3,2e-3") == 0
    assert "nothing left to do: all 2 runs of" in capsys.readouterr().out and len(site.submitted) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.nodes=1,2"], "cluster.nodes is that of all runs of the sweep"),
        (["optimizer.lr=1e-3,fast"], "optimizer.lr=fast: "),
        (["train.seed=1,2", "cluster.chain=1"], "cluster.chain=1 is for a single run"),
        (["train.seed=1,2", "run_dir=null"], "--multirun needs run_dir=FOLDER"),
        (["train.global_batch_size=8,9"], "train.global_batch_size=9: train.global_batch_size=9 is not divisible"),
    ],
)
def test_problems_of_a_sweep_are_told(
    overrides: list[str], said: str, site: Site, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*asked, "--multirun", *overrides) == 2
    assert said in capsys.readouterr().err and site.submitted == []


def test_sbatch_is_not_disturbed_by_the_environment(
    site: Site, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables count for sbatch more than #SBATCH lines; a job's own would be handed on."""
    for name, value in (
        ("SBATCH_PARTITION", "other"),
        ("SBATCH_ACCOUNT", "kept"),
        ("SBATCH_TIMELIMIT", "1"),
        ("SBATCH_NO_REQUEUE", "1"),
        ("SLURM_MEM_PER_CPU", "1"),
        ("SLURM_CONF", "/site/slurm.conf"),
    ):
        monkeypatch.setenv(name, value)
    assert run(*asked, "cluster.partition=gpu") == 0
    found = {name for name in site.environment if name.startswith(("SBATCH_", "SLURM_"))}
    assert found == {"SBATCH_ACCOUNT", "SLURM_CONF"}


def test_sbatch_that_takes_no_job_is_a_failure(
    site: Site, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    site.answers(sbatch=(1, "sbatch: error: Job submit limit"))
    assert run(*asked) == 1
    assert "sbatch took no job: sbatch: error: Job submit limit" in capsys.readouterr().err


def test_a_folder_that_would_break_out_of_its_line_is_refused(
    site: Site, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "x\ntouch HERE\n"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run(*asked, "dry_run=true") == 2
    assert "a job cannot run in a folder of such a name" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert run(*asked, f"run_dir='{folder}'", "dry_run=true") == 2
    assert "which the job's script does not take" in capsys.readouterr().err


def test_without_run_dir_one_is_made(site: Site, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*TINY, f"data.path={corpus}", *CLUSTER, "dry_run=true") == 0
    assert not (tmp_path / "runs").exists()
    assert run(*TINY, f"data.path={corpus}", *CLUSTER) == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert run_script(made / "slurm/submissions/001/job.sbatch")[-1] == f"run_dir={made}"


def test_a_job_runs_what_was_submitted(site: Site, corpus: Path, tmp_path: Path) -> None:
    """Code, own modules and own groups are edited after the submission; the job does not see it."""
    own = tmp_path / "own"
    (own / "conf/experiment").mkdir(parents=True)
    recipe = own / "conf/experiment/mine.yaml"
    recipe.write_text("# @package _global_\ntrain: {steps: 7}\n")
    (own / "my_module.py").write_text("import my_helper\nprint('module', my_helper.VALUE)\n")
    (own / "my_helper.py").write_text("VALUE = 1\n")
    (own / "my_package").mkdir()
    for name, text in (("__init__.py", ""), ("part.py", ""), ("later.py", "VALUE = 1\n"), ("table.json", "{}")):
        (own / "my_package" / name).write_text(text)
    (own / ".venv").mkdir()
    (own / ".venv/unused.py").write_text("")
    arguments = [
        *(f"--config-dir={own / 'conf'}", "experiment=mine", "modules=[my_module,my_package.part]"),
        *(*TINY, f"data.path={corpus}", f"run_dir={tmp_path}/run", *CLUSTER),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.submit_with_stub", str(site.scripts), *arguments],
        cwd=own,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{own}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recipe.write_text("# @package _global_\ntrain: {steps: 9}\n")
    (own / "my_helper.py").write_text("VALUE = 2\n")
    (own / "pretraining").mkdir()
    (own / "pretraining/__init__.py").write_text("raise SystemExit('the edited checkout')\n")
    (code,) = (tmp_path / "run/slurm").glob("code-*")
    given = run_script(tmp_path / "run/slurm/submissions/001/job.sbatch")
    job = subprocess.run(
        [sys.executable, "-P", "-m", "pretraining.train", *given, "--cfg", "job"],
        cwd=own,  # a job runs in the folder of the submission
        env={**os.environ, "PYTHONPATH": f"{code}:{own}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    first, _, rest = job.stdout.partition("\n")
    assert first == "module 1" and yaml.safe_load(rest)["train"]["steps"] == 7
    names = {path.relative_to(code).parts[0] for path in code.rglob("*")}
    own_names = {"my_module.py", "my_helper.py", "my_package"}
    assert names == {"pretraining", "data_pipeline", "conf", "slurm", "config_dirs", *own_names}
    assert {p.name for p in (code / "my_package").iterdir()} == {"__init__.py", "part.py", "later.py", "table.json"}


def test_the_same_code_is_copied_once(site: Site, asked: list[str], tmp_path: Path) -> None:
    assert run(*asked) == 0 and run(*asked, "train.log_every=2") == 0
    assert len(list((tmp_path / "run/slurm").glob("code-*"))) == 1
    assert sorted(p.name for p in (tmp_path / "run/slurm/submissions").iterdir()) == ["001", "002"]
    (site.scripts / "pretrain.sbatch").write_text("# edited\n")
    assert run(*asked) == 0
    assert len(list((tmp_path / "run/slurm").glob("code-*"))) == 2
    about = json.loads((tmp_path / "run/slurm/submissions/003/submission.json").read_text())
    assert about["code"].startswith("code-") and about["arguments"][-1] == f"run_dir={tmp_path}/run"


def test_pretrain_and_submit_choose_alike() -> None:
    """What conf/submit.yaml repeats of conf/pretrain.yaml, but for the cluster."""
    texts = [(ROOT / f"conf/{name}.yaml").read_text() for name in ("pretrain", "submit")]
    ours, submits = (yaml.safe_load(text)["defaults"] for text in texts)
    assert [entry for entry in submits if entry != {"cluster": "none"}] == ours


def test_the_preflight_needs_no_torch_where_a_checkpoint_is_there(site: Site, asked: list[str], tmp_path: Path) -> None:
    from tests.helpers import train_alone

    ours = [a for a in asked if not a.startswith("cluster")]
    train_alone(*ours, "train.steps=4")
    done = run_process(
        *(sys.executable, "-X", "importtime", "-m", "tests.cluster.submit_with_stub", str(site.scripts)),
        *(*asked, "train.steps=9", "dry_run=true"),
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert " torch\n" not in done.stderr
    assert "step_00000004, " in done.stdout and "fits any layout" in done.stdout
    assert "steps of" in done.stdout and "scaled from 1 ranks" in done.stdout


def test_config_of_a_run_takes_no_keys_of_the_cluster() -> None:
    assert "cluster" not in RunConfig.__dataclass_fields__
