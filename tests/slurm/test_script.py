"""What slurm/pretrain.sbatch decides, without SLURM: its functions, with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPT, LIB = ROOT / "slurm" / "pretrain.sbatch", ROOT / "slurm" / "lib.sh"


def bash(text: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`text` where lib.sh has been read, with the variables of a job."""
    head = f"""set -uo pipefail
    . {LIB}
    run_dir={folder}/run state={folder}/run/slurm id=7.0 code={ROOT} job=7 start=0
    caught='' began=0
    mkdir -p "$state/logs"
    check_settings
    """
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "pretrain", "SLURM_JOB_NODELIST": "a", "SLURM_JOB_NUM_NODES": "1"}
    return subprocess.run(
        ["bash", "-c", head + text, "_", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": "/home/me", **job, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    found = subprocess.run(["shellcheck", "-x", SCRIPT, LIB], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("overrides", "environment", "expected"),
    [
        ([], {}, "{cwd}/runs/pretrain-7"),
        (["run_dir=a", "x=1", "run_dir=b"], {}, "{cwd}/b"),
        (["++run_dir='/a b/c%d'"], {}, "/a b/c%d"),
        (["run_dir=~/x"], {}, "/home/me/x"),
        (["run_dir=/a$b"], {}, "/a$b"),
        (["run_dir=null"], {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "{cwd}/runs/pretrain-5/2"),
        (["run_dir=/a"], {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0"}, "/a/0"),
        (["train.run_dir=/a"], {}, "{cwd}/runs/pretrain-7"),
    ],
)
def test_the_run_dir_is_the_same_at_every_restart(tmp_path, overrides, environment, expected):
    found = bash('find_run_dir "$@"; echo "$run_dir"', tmp_path, *overrides, **environment)
    assert found.stdout == expected.replace("{cwd}", str(tmp_path)) + "\n", found.stderr


@pytest.mark.parametrize("name", ["/it's", "/a\\b", "/a${b}", "/a\nb"])
def test_a_run_dir_that_hydra_would_read_otherwise_is_refused(tmp_path, name):
    assert bash('find_run_dir "$@"', tmp_path, f"run_dir={name}").returncode == 2


def test_a_chain_needs_a_name_that_its_jobs_share(tmp_path):
    found = bash('find_run_dir "$@"', tmp_path, PRETRAIN_REQUEUE="chain")
    assert found.returncode == 2 and "needs run_dir=PATH" in found.stdout


def test_settings_that_mean_nothing_are_refused(tmp_path):
    wrong = {"SIGNAL": "KILL", "REQUEUE": "yes", "CHECK": "1", "MAX_RESTARTS": "-1"}
    for name, value in wrong.items():
        found = bash("", tmp_path, **{f"PRETRAIN_{name}": value})
        assert found.returncode == 2 and f"PRETRAIN_{name}={value}" in found.stdout, name
    for text, name in (("find_ranks", "LAUNCHER"), ("find_container", "CONTAINER")):
        found = bash(text, tmp_path, **{f"PRETRAIN_{name}": "podman", "PRETRAIN_IMAGE": "x"})
        assert found.returncode == 2 and f"PRETRAIN_{name}=podman" in found.stdout, name


def test_a_verdict_is_read_for_what_it_says(tmp_path):
    (tmp_path / "run").mkdir()
    values = {"exit_code": 75, "reason": 'a "exit_code": 0, {"fault": false}, b', "fault": True}
    (tmp_path / "run" / "verdict.json").write_text(json.dumps(values))
    found = bash('for key in exit_code fault reason other; do echo "$(verdict $key)"; done', tmp_path)
    assert found.stdout.splitlines() == ["75", "true", json.dumps(values["reason"])[1:-1], ""]


def test_a_member_of_a_sweep_has_its_line_as_it_stands(tmp_path):
    lines = ["a=1", r"""a=2 'b="$(touch HERE)" `x` ${y}' 'c='"'"'it'"'"''""", "", "a=4"]
    (tmp_path / "sweep").write_text("\n".join(lines))

    def member(number):
        text = 'overrides=(first); add_sweep_overrides; printf "%s\\n" "${overrides[@]}"'
        return bash(text, tmp_path, PRETRAIN_SWEEP="sweep", SLURM_ARRAY_TASK_ID=str(number))

    assert member(0).stdout.splitlines() == ["first", "a=1"]
    assert member(1).stdout.splitlines() == ["first", "a=2", 'b="$(touch HERE)" `x` ${y}', "c='it'"]
    assert member(3).stdout.splitlines() == ["first", "a=4"]  # the last line has no end
    assert member(2).returncode == member(4).returncode == 2

    def folder(number):
        text = 'overrides=(run_dir=/all); add_sweep_overrides; find_run_dir "${overrides[@]}"; echo "$run_dir"'
        return bash(text, tmp_path, PRETRAIN_SWEEP="folders", SLURM_ARRAY_TASK_ID=str(number)).stdout.strip()

    (tmp_path / "folders").write_text("a=1\n'run_dir='\"'\"'/all/a b'\"'\"''\n")  # a line may name a folder
    assert [folder(0), folder(1)] == ["/all/0", "/all/a b"]
    assert not (tmp_path / "HERE").exists()


def test_a_member_whose_line_names_a_run_dir_trains_there(tmp_path):
    (tmp_path / "sweep").write_text("a=1 run_dir=\"'/r/a 1'\"\na=2\n")
    text = 'overrides=(run_dir=/r); add_sweep_overrides; find_run_dir "${overrides[@]}"; echo "$run_dir"'
    for number, expected in enumerate(("/r/a 1", "/r/1")):
        job = {"PRETRAIN_SWEEP": "sweep", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": str(number)}
        assert bash(text, tmp_path, **job).stdout == f"{expected}\n"


def test_a_site_file_is_data_and_wins(tmp_path):
    (tmp_path / "site").write_text("# a site\n\nNCCL_SOCKET_IFNAME=hsn0\nA=$(touch HERE) 'b' `c`\nOMP_NUM_THREADS=3")
    text = 'cores=8; ip() { echo "3: ib0 inet 10.0.0.1/24"; }; scontrol() { echo n1; echo n2; }; find_settings; '
    found = bash(text + 'printf "%s\\n" "${settings[@]}"', tmp_path, PRETRAIN_SITE="site", PRETRAIN_HOST_SUFFIX="i")
    assert found.stdout.splitlines() == [
        "MASTER_ADDR=n1i",
        "MASTER_PORT=20007",
        "OMP_NUM_THREADS=8",
        "NCCL_SOCKET_IFNAME=ib0",
        "GLOO_SOCKET_IFNAME=ib0",
        "NCCL_SOCKET_IFNAME=hsn0",  # env takes the last
        "A=$(touch HERE) 'b' `c`",
        "OMP_NUM_THREADS=3",
    ], found.stderr
    assert not (tmp_path / "HERE").exists()
    for wrong in ("no equals sign", "export A=1", "PRETRAIN_SIGNAL=TERM", "2A=1"):
        (tmp_path / "site").write_text(wrong)
        assert bash(text, tmp_path, PRETRAIN_SITE="site").returncode == 2, wrong
    assert bash(text, tmp_path, PRETRAIN_SITE="missing").returncode == 2


def test_without_a_rendezvous_nothing_is_started(tmp_path):
    """Each node that took itself for the first would train by itself."""
    for scontrol in ("scontrol() { return 1; }", "scontrol() { :; }"):
        found = bash(f"cores=1; {scontrol}; find_settings; echo started", tmp_path)
        assert found.returncode == 1 and "no rendezvous" in found.stdout and "started" not in found.stdout


def test_the_fast_interface_is_slingshot_or_infiniband(tmp_path):
    line = "{}: {}    inet 10.0.0.{}/24 brd 10.0.0.255 scope global {}\n"
    names = ["lo", "eth0", "ibp12s0", "hsn0"]
    shown = "".join(line.format(number, name, number, name) for number, name in enumerate(names, 1))
    assert bash(f"fast_interface <<<'{shown}'", tmp_path).stdout == "ibp12s0\n"
    assert bash(f"fast_interface <<<'{line.format(1, 'eth0', 1, 'eth0')}'", tmp_path).stdout == ""


@pytest.mark.parametrize(
    ("environment", "ranks", "cores", "options"),
    [
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}, "4", "8", "--ntasks-per-node=4 --ntasks=12"),
        ({"SLURM_GPUS_ON_NODE": "8"}, "8", "1", "--ntasks-per-node=8 --ntasks=24"),
        ({"SLURM_NTASKS": "5"}, "1", "1", ""),
        ({"PRETRAIN_RANKS_PER_NODE": "2", "SLURM_NTASKS": "3"}, "2", "1", "--ntasks-per-node=2 --ntasks=6"),
        (
            {"PRETRAIN_LAUNCHER": "torchrun", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"},
            "8",
            "8",
            "--ntasks-per-node=1 --ntasks=3 --cpus-per-task=64",
        ),
        ({"PRETRAIN_SRUN": "--cpu-bind='a b'"}, "1", "1", "--ntasks-per-node=1 --ntasks=3 --cpu-bind=a b"),
    ],
)
def test_ranks_and_cores(tmp_path, environment, ranks, cores, options):
    text = 'find_ranks; echo "$ranks/$cores/${SRUN_CPUS_PER_TASK:-none}"; echo "${srun_options[@]:2}"'
    found = bash(text, tmp_path, **{"SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_ON_NODE": "64", **environment})
    given = "none" if "PRETRAIN_LAUNCHER" in environment else cores
    assert found.stdout.splitlines() == [f"{ranks}/{cores}/{given}", options], found.stderr


def test_containers(tmp_path):
    text = 'srun_options=(); find_container; printf "%s\\n" "${srun_options[@]}" -- "${enter[@]}"'
    image = {"PRETRAIN_IMAGE": "/i.sif", "PRETRAIN_MOUNTS": "/data:/data"}
    assert bash(text, tmp_path).stdout == "--\n"
    pyxis = bash(text, tmp_path, PRETRAIN_CONTAINER="pyxis", **image).stdout
    assert pyxis.startswith("--container-image=/i.sif\n--container-mounts=") and ",/data:/data\n" in pyxis
    apptainer = bash(text, tmp_path, PRETRAIN_CONTAINER="apptainer", **image).stdout
    assert apptainer.startswith("--\napptainer\nexec\n") and apptainer.endswith("/i.sif\n")
    assert bash(text, tmp_path, PRETRAIN_CONTAINER="pyxis").returncode == 2


# What follows a start: scontrol and sinfo as they answer for a job that runs on healthy nodes
HEALTHY = """
sinfo() { :; }; sleep() { :; }
scontrol() {
  case "$*" in show\\ job*) echo "JobState=RUNNING Restarts=0 ExcNodeList=(null)" ;; *) echo "CALLED $*" ;; esac
}
result='' fault='' srun_code=0
"""


def after(folder: Path, text: str, started: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
    log = "touch $state/logs/7.0.rank0.log\n" if started else ""
    begin = "record begin 0 a\n" if "record" not in text else ""
    return bash(HEALTHY + log + begin + text + "\nend_or_requeue", folder, **settings)


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("result=0", 0, "ended with 0: done"),
        ("result=2", 2, "the command is wrong"),
        ("srun_code=2", 2, "the command is wrong"),
        ("srun_code=127", 2, "was not found"),
        ("result=1 srun_code=1", 1, "a restart will not mend it"),
        ("result=75", 0, "CALLED requeue 7"),
        ("result=75 fault=true", 0, "ended by fault"),
        ("srun_code=137", 0, "ended by fault"),
        ("caught=USR1 srun_code=137", 0, "ended by signal"),
        ("caught=USR1 result=75 fault=true", 0, "ended by signal"),
        ("caught=USR1 result=1", 1, "a restart will not mend it"),
        ("sinfo() { echo n2; }; result=75 fault=true", 0, "ended by node: failed: n2"),
        ("sinfo() { echo n2; }; result=1", 0, "ended by node"),
        ("start=50 result=75", 1, "gave up: restarted 50 times"),
    ],
)
def test_what_follows_a_start(tmp_path, text, code, told):
    found = after(tmp_path, text)
    assert found.returncode == code and told in found.stdout, found
    assert ("CALLED requeue 7" in found.stdout) == (code == 0 and text != "result=0")


def test_a_job_without_ranks_ends(tmp_path):
    found = after(tmp_path, "srun_code=1", started=False)
    assert found.returncode == 1 and "srun started no rank" in found.stdout


@pytest.mark.parametrize("mode", ["chain", "none"])
def test_where_requeueing_is_forbidden_the_job_ends_with_75(tmp_path, mode):
    found = after(tmp_path, "result=75", PRETRAIN_REQUEUE=mode)
    assert found.returncode == 75 and "CALLED" not in found.stdout


def test_slurm_refuses_to_requeue(tmp_path):
    found = after(tmp_path, 'scontrol() { [ "$1" = show ] && echo "JobState=RUNNING Restarts=0"; }; result=75')
    assert found.returncode == 75 and "PRETRAIN_REQUEUE=chain" in found.stdout


def test_a_controller_that_is_away_for_a_moment_loses_no_job(tmp_path):
    away = 'scontrol() { echo x >>tries; [ "$(wc -l <tries)" -gt 6 ] && echo "CALLED $*"; }; result=75'
    found = after(tmp_path, away)
    assert found.returncode == 0 and "CALLED requeue 7" in found.stdout, found


def test_a_job_that_its_user_cancelled_stays_so(tmp_path):
    """scontrol would bring it back to life. What SLURM has requeued already needs no more of it; a job whose time is
    over looks like one that was cancelled."""
    text = 'scontrol() { case "$*" in show*) echo "$shown" ;; *) echo "CALLED $*" ;; esac; }\nresult=75 caught=TERM'

    def ended(shown):
        (tmp_path / "run" / "slurm" / "starts").unlink(missing_ok=True)
        return after(tmp_path, text, shown=f"JobState=COMPLETING {shown}")

    found = ended("Reason=None Restarts=0 PreemptTime=None")
    assert found.returncode == 75 and "was cancelled" in found.stdout and "CALLED" not in found.stdout
    found = ended("Reason=None Restarts=1")
    assert found.returncode == 0 and "CALLED requeue" not in found.stdout
    for shown in (
        "Reason=TimeLimit Restarts=0 PreemptTime=None",
        "Reason=None Restarts=0 PreemptTime=2026-01-01T00:00:00",
    ):
        found = ended(shown)
        assert found.returncode == 0 and "CALLED requeue 7" in found.stdout, shown


@pytest.mark.parametrize(
    ("starts", "count"),
    [
        ("", 0),
        ("begin 7.0 1 0 a|end 7.0 2 0 fault", 1),
        ("begin 7.0 1 0 a|end 7.0 2 0 fault|begin 7.1 3 0 a|end 7.1 4 0 fault", 2),
        ("begin 7.0 1 0 a|end 7.0 2 0 fault|begin 7.1 3 0 a|end 7.1 4 5 fault", 0),  # it made progress
        ("begin 7.0 1 0 a|end 7.0 2 0 fault|begin 7.1 3 0 a|end 7.1 4 0 signal", 1),  # it could not help it
        ("begin 7.0 1 0 a|end 7.0 2 0 fault|begin 7.1 3 0 a|end 7.1 4 0 node", 1),
        ("begin 7.0 1 0 a|end 7.0 2 0 fault|begin 7.1 3 0 a|begin 7.2 4 0 a", 1),  # no end: the host died
        ("begin 7.0 1 8 a|end 7.0 2 8 fault|final 7.0 2 8 1|begin 9.0 9 8 a", 0),  # submitted again
    ],
)
def test_faults_without_progress_in_a_row(tmp_path, starts, count):
    state = tmp_path / "run" / "slurm"
    state.mkdir(parents=True)
    (state / "starts").write_text(starts.replace("|", "\n") + "\n")
    assert bash("faults_in_a_row", tmp_path).stdout == f"{count}\n"


def test_two_starts_without_progress_end_the_chain(tmp_path):
    first = after(tmp_path, "record begin 0 a; result=75 fault=true")
    assert "ended by fault" in first.stdout
    second = after(tmp_path, "record begin 0 a; result=75 fault=true")
    assert second.returncode == 1 and "two starts in a row ended by a fault" in second.stdout
    assert "CALLED" not in second.stdout


def test_a_sites_own_shell_code_changes_no_options_of_the_script(tmp_path):
    (tmp_path / "setup").write_text("set -e +o pipefail\ncd /tmp\nexport A=$UNSET-module\n")
    found = bash('run_setup; false; false | true || echo "$A goes on in $PWD"', tmp_path, PRETRAIN_SETUP="setup")
    assert found.stdout == f"-module goes on in {tmp_path}\n", found


def test_a_sweep_whose_quote_is_not_closed_is_refused(tmp_path):
    """The rest of the line would be missing, and its run another one."""
    (tmp_path / "sweep").write_text("optimizer.lr=1e-3 tracking.run_name=it's train.seed=3\n")
    found = bash("overrides=(); add_sweep_overrides", tmp_path, PRETRAIN_SWEEP="sweep", SLURM_ARRAY_TASK_ID="0")
    assert found.returncode == 2 and "a quote is not closed" in found.stdout


def test_a_fault_after_progress_is_the_first_one_again(tmp_path):
    after(tmp_path, "record begin 0 a; result=75 fault=true")
    (tmp_path / "run" / "checkpoints" / "step_00000010").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_00000010" / "manifest.json").touch()
    (tmp_path / "run" / "checkpoints" / "step_00000020").mkdir()  # not whole: no progress
    for copy in ("step_00000030.bak", "abandoned_step_00000040"):
        (tmp_path / "run" / "checkpoints" / copy).mkdir()
        (tmp_path / "run" / "checkpoints" / copy / "manifest.json").touch()
    assert bash("newest_step", tmp_path).stdout == "10\n"
    for began, code in ((0, 0), (10, 0), (10, 1)):
        found = after(tmp_path, f"began={began}; record begin {began} a; result=75 fault=true")
        assert found.returncode == code, found


def test_a_run_that_was_given_up_is_not_taken_up_by_jobs_that_were_queued_before(tmp_path):
    """The follow-ups of a chain end at once; a job that is submitted afterwards starts."""
    state = tmp_path / "run" / "slurm"
    state.mkdir(parents=True)
    (state / "starts").write_text("begin 7.0 100 0 a\nfinal 7.0 1000000000 0 1\n")  # 2001-09-09
    text = 'overrides=(a); scontrol() { echo "SubmitTime=$submitted"; }; end_if_nothing_is_left; echo goes on'
    assert bash(text, tmp_path, submitted="2001-09-08T00:00:00").returncode == 1
    for submitted in ("2001-09-10T12:00:00", "Unknown", ""):
        assert "goes on" in bash(text, tmp_path, submitted=submitted).stdout


def test_a_finished_run_ends_at_once_unless_it_is_told_more(tmp_path):
    state = tmp_path / "run" / "slurm"
    state.mkdir(parents=True)
    (tmp_path / "run" / "verdict.json").write_text('{"exit_code": 0, "reason": "done"}')
    assert bash('overrides=("$@"); result=0 srun_code=0; end_or_requeue', tmp_path, "a=1", "b=it's $x").returncode == 0
    text = 'overrides=("$@" ${more:-}); end_if_nothing_is_left; echo goes on'
    assert "nothing left to do" in bash(text, tmp_path, "a=1", "b=it's $x").stdout
    for _ in range(2):  # also where that start was stopped before it trained, or was wrong: the verdict is the old one
        assert "goes on" in bash(text, tmp_path, "a=1", "b=it's $x", more="train.steps=9").stdout
    assert bash(f"{HEALTHY} result=2 srun_code=2; end_or_requeue", tmp_path, "a=1").returncode == 2
    assert "goes on" in bash(text, tmp_path, "a=1", "b=it's $x", more="train.steps=9").stdout


def test_a_node_that_failed_twice_is_avoided(tmp_path):
    state = tmp_path / "run" / "slurm"
    state.mkdir(parents=True)
    (state / "failed_nodes").write_text("n1\nn2\nn3\nn1\nn3\n")
    assert bash("bad_nodes", tmp_path).stdout == "n1,n3\n"
    hosts = HEALTHY.replace('case "$*" in', """case "$*" in show\\ hostnames*) printf '%s\\n' $here ;;""")
    hosts = hosts.replace("ExcNodeList=(null)", "ExcNodeList=old")
    found = bash(hosts + "\navoid_bad_nodes; echo goes on", tmp_path, here="n2 n4")
    assert found.stdout == "goes on\n", found
    found = bash(hosts + "\navoid_bad_nodes; echo goes on", tmp_path, here="n1 n4")
    assert "CALLED requeue 7" in found.stdout and "ExcNodeList=old,n1,n3" in found.stdout, found
    assert "goes on" not in found.stdout


def test_outliers_are_excluded_three_times_at_most(tmp_path):
    outliers = HEALTHY + 'printf "n2\\nn5\\n" >"$state/outliers"; record begin 0 a; avoid_outliers; echo goes on'
    assert "goes on" in bash(outliers, tmp_path, PRETRAIN_CHECK="report").stdout
    for _ in range(3):
        found = bash(outliers, tmp_path, PRETRAIN_CHECK="exclude")
        assert "CALLED requeue 7" in found.stdout and "ExcNodeList=n2,n5" in found.stdout, found
    found = bash(outliers, tmp_path, PRETRAIN_CHECK="exclude")
    assert "goes on" in found.stdout and "CALLED" not in found.stdout
    none = HEALTHY + ': >"$state/outliers"; avoid_outliers; echo goes on'
    assert bash(none, tmp_path, PRETRAIN_CHECK="exclude").stdout == "goes on\n"


def test_nodes_that_died_with_the_job_script_are_found_out_later(tmp_path):
    state = tmp_path / "run" / "slurm"
    state.mkdir(parents=True)
    scontrol = """scontrol() { case "$*" in
      show\\ hostnames*) printf 'n1\\nn2\\nn3\\nn4\\n' ;;
      *n1) echo 'NodeName=n1 State=IDLE SlurmdStartTime=2000-01-01T00:00:00' ;;
      *n2) echo 'NodeName=n2 State=DOWN* SlurmdStartTime=2000-01-01T00:00:00' ;;
      *n3) echo 'NodeName=n3 State=IDLE+DRAIN SlurmdStartTime=2001-09-10T00:00:00' ;;
      *n4) echo 'NodeName=n4 State=MIXED* SlurmdStartTime=None' ;;
    esac; }
    note_failed_nodes; cat "$state/failed_nodes" 2>/dev/null"""
    (state / "starts").write_text("begin 7.0 1000000000 0 n[1-4]\n")
    assert [line for line in bash(scontrol, tmp_path).stdout.splitlines() if " " not in line] == ["n2", "n3", "n4"]
    (state / "failed_nodes").unlink()
    (state / "starts").write_text("begin 7.0 1000000000 0 n[1-4]\nend 7.0 1000000001 0 signal\n")
    assert bash(scontrol, tmp_path).stdout == ""
