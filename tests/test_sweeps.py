"""`pretrain --multirun`: which commands a sweep stands for, and what is left of them when it ends or is stopped."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json
from data_pipeline.common.sweeps import combinations, folder_names
from tests.helpers import ROOT, TINY, metrics


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a=1,2", "b=x", "c=y,z"], [[f"a={a}", "b=x", f"c={c}"] for a in (1, 2) for c in "yz"]),
        (["betas=[0.9,0.95],[0.9,0.99]"], [["betas=[0.9,0.95]"], ["betas=[0.9,0.99]"]]),
        (["n=range(1,4)"], [["n=1"], ["n=2"], ["n=3"]]),
        (["a=choice(1,2)", "--config-dir=x,y"], [["a=1", "--config-dir=x,y"], ["a=2", "--config-dir=x,y"]]),
        (["+a=1,2"], [["+a=1"], ["+a=2"]]),
        (["a='x,y'", "b=[1,2]", "~c"], [["a='x,y'", "b=[1,2]", "~c"]]),
        (["a='x y',\"$(z)\""], [["a='x y'"], ["a=\"$(z)\""]]),
        ([], [[]]),
    ],
)  # fmt: skip
def test_combinations_are_those_of_hydras_grammar(arguments, expected):
    assert [c.arguments for c in combinations(arguments)] == expected


def test_a_folder_is_named_by_what_its_run_chose():
    found = combinations(["optimizer.lr=1e-3,3e-4", "steps=5", "model=gpt2_small,'a/../b c'"])
    assert folder_names(found) == [
        "lr-0.001_model-gpt2_small",
        "lr-0.001_model-a_.._b_c",
        "lr-0.0003_model-gpt2_small",
        "lr-0.0003_model-a_.._b_c",
    ]
    assert folder_names(combinations(["a.n=1,2", "b.n=3,4"]))[0] == "a.n-1_b.n-3"
    few, more = (folder_names(combinations([f"a='x y',z{values}"])) for values in ("", ",x_y,'x/y'"))
    assert more[:2] == few == ["a-x_y", "a-z"] and len(set(more)) == 4


@pytest.mark.parametrize("argument", ["a=glob(*)", "a=interval(0,1)", "a=range(0,100000)", "a=1,range(1,3)"])
def test_what_cannot_be_counted_is_refused(argument):
    with pytest.raises(InputError, match="--multirun: a="):
        combinations([argument])


def sweep(corpus, folder, *more):
    command = [
        sys.executable,
        "-m",
        "pretraining.train",
        "--multirun",
        *TINY,
        f"data.path={corpus}",
        f"run_dir={folder}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True)


def test_every_combination_trains_in_its_folder_and_stands_in_the_table(corpus, tmp_path):
    folder = tmp_path / "it's a sweep"
    arguments = ("train.steps=4,6", "train.eval_every=2", f'run_dir="{folder}"')
    process = sweep(corpus, "ignored", *arguments)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert sorted(f.name for f in folder.iterdir()) == ["results.csv", "steps-4", "steps-6"]
    assert [len(metrics(folder / name)) for name in ("steps-4", "steps-6")] == [4, 6]
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["run"], row["ended"], row["steps"]) for row in rows] == [
        ("steps-4", "done", "4"),
        ("steps-6", "done", "6"),
    ]
    assert "<- best" in output and "--- 2/2  train.steps=6" in output
    again = sweep(corpus, "ignored", *arguments)
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and output.count("is done already") == 2 and "step 1/" not in output


def test_a_stopped_sweep_goes_on_where_it_was(corpus, tmp_path):
    arguments = ("train.steps=3,400", "train.eval_every=0", "train.checkpoint_every=0")
    process = sweep(corpus, tmp_path / "s", *arguments)
    deadline = time.monotonic() + 200
    for line in process.stdout:
        if "step 5/400" in line:
            break
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)  # to the parent alone
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 75 and "stopped at run 2 of 2" in output, output
    assert read_json(tmp_path / "s" / "steps-400" / "verdict.json")["exit_code"] == 75
    reached = max(metrics(tmp_path / "s" / "steps-400"))
    again = sweep(corpus, tmp_path / "s", *arguments)
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and "--- 1/2  train.steps=3" in output and output.count("is done already") == 1
    assert f"step {reached + 1}/400" in output and "step 1/400" not in output


def test_problems_of_all_combinations_are_told_before_the_first_starts(corpus, tmp_path):
    process = sweep(corpus, tmp_path / "s", "train.micro_batch_size=8,7", "optimizer.lr=1e-3,x")
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 2 and not (tmp_path / "s").exists()
    assert (
        "train.micro_batch_size=7 optimizer.lr=0.001: train.global_batch_size" in output and "optimizer.lr=x" in output
    )


def test_a_sweep_is_refused_under_a_launcher(corpus, tmp_path):
    environment = {**os.environ, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "MASTER_ADDR": "x"}
    environment["MASTER_PORT"] = "1"
    command = [
        sys.executable,
        "-m",
        "pretraining.train",
        "-m",
        f"data.path={corpus}",
        f"run_dir={tmp_path}",
        "train.steps=1,2",
    ]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2 and "start it without a launcher" in ended.stderr
