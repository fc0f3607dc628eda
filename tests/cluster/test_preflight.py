"""The figures of the preflight: bytes, steps, saves, against what a real run then has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.shards.manifest import load_manifest
from pretraining.build import read_data
from pretraining.cluster import preflight as checks
from pretraining.cluster.config import ClusterConfig, limit_seconds
from pretraining.cluster.estimates import Shapes, StepTime, Unknown, save_seconds, saved_bytes, step_time
from pretraining.cluster.finding import Finding, table
from pretraining.cluster.plan import Plan, make_plan
from pretraining.cluster.site import Row
from pretraining.config import load_config
from pretraining.run.checkpoint_format import newest_checkpoint
from tests.helpers import TINY, start_ranks, train_alone

MakePlan = Callable[..., Plan]


@pytest.fixture
def plan(corpus: Path, tmp_path: Path) -> MakePlan:
    def make(*overrides: str, **cluster: object) -> Plan:
        arguments = [*TINY, f"data.path={corpus}", f"run_dir={tmp_path}/run", *overrides]
        config = ClusterConfig(name="slurm", **cluster)  # type: ignore[arg-type]
        return make_plan(load_config(arguments, config.ranks), config, arguments, f"{tmp_path}/run")

    return make


def found(plan: Plan) -> dict[str, Finding]:
    return {finding.check: finding for finding in checks.preflight(plan, [])}


def shapes(plan: Plan) -> Shapes:
    data = read_data(plan.run)
    return Shapes(plan, data.prepared.vocabulary, data.objective)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer=lamb",),
        ("optimizer=adafactor", "optimizer.eps=[1e-30,1e-3]"),
        ("optimizer=adafactor", "optimizer.eps=[1e-30,1e-3]", "optimizer.beta1=0.9"),
        ("train.freeze=['*embedding*']",),
    ],
)
def test_bytes_of_a_checkpoint_are_those_that_a_run_saves(overrides: tuple[str, ...], plan: MakePlan) -> None:
    asked = plan("train.steps=2", *overrides)
    estimate = shapes(asked).checkpoint_bytes()
    train_alone(*asked.overrides, f"run_dir={asked.run_dir}")
    checkpoint = newest_checkpoint(asked.run_dir / "checkpoints")
    assert checkpoint is not None
    assert estimate == pytest.approx(saved_bytes(checkpoint.manifest), rel=0.1)  # the files have indexes as well
    assert estimate < saved_bytes(checkpoint.manifest)


def test_a_run_measures_its_steps_and_saves(plan: MakePlan, tmp_path: Path) -> None:
    asked = plan("train.steps=12", "train.checkpoint_every=6")
    train_alone(*asked.overrides, f"run_dir={asked.run_dir}")
    fingerprint = load_manifest(asked.run.data.path or "").fingerprint
    step = step_time(asked, fingerprint, shapes(asked))
    assert isinstance(step, StepTime) and step.measured and 0 < step.seconds <= step.slow_seconds
    saved = save_seconds(asked, 0)
    assert not isinstance(saved, Unknown) and 0 < saved[0] < 60
    doubled = step_time(plan("train.global_batch_size=16", measured=str(asked.run_dir)), fingerprint, shapes(asked))
    assert isinstance(doubled, StepTime) and doubled.seconds == pytest.approx(2 * step.seconds)
    shared = step_time(plan(measured=str(asked.run_dir), nodes=2), fingerprint, shapes(asked))
    assert isinstance(shared, StepTime) and shared.seconds == pytest.approx(step.seconds / 2)
    other = step_time(plan("model.hidden_size=64", measured=str(asked.run_dir)), fingerprint, shapes(asked))
    assert isinstance(other, Unknown) and "model.hidden_size" in other.reason


def write_steps(run_dir: Path, seconds: float, save: float | None = None) -> None:
    (run_dir / "ranks").mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 1.0, "step_seconds": seconds}) for step in range(1, 30)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run_dir / "ranks/rank_00000.json").write_text(json.dumps({"ranks": 1}))
    identity = {"identity": {"train.global_batch_size": 8}}
    (run_dir / "run.json").write_text(json.dumps(identity if save is None else {**identity, "save_seconds": save}))


@pytest.mark.parametrize(
    ("seconds", "every", "limit", "status"),
    [
        (1.0, 100, "10", "ok"),
        (1.0, 301, "10", "problem"),  # 600 s, of which 300 s are the lead
        (1.0, 299, "10", "ok"),
        (10.0, 200, "24:00:00", "ok"),
        (10.0, 0, "24:00:00", "ok"),  # one at the end: 1000 steps
        (100.0, 0, "24:00:00", "problem"),
    ],
)
def test_time_to_the_first_checkpoint(
    seconds: float, every: int, limit: str, status: str, plan: MakePlan, tmp_path: Path
) -> None:
    write_steps(tmp_path / "measured", seconds)
    asked = plan(f"train.checkpoint_every={every}", measured=str(tmp_path / "measured"), time_limit=limit)
    assert found(asked)["first checkpoint"].status == status


@pytest.mark.parametrize(
    ("seconds", "save", "status"), [(100.0, 100.0, "ok"), (301.0, None, "problem"), (100.0, 201.0, "problem")]
)
def test_lead_time(seconds: float, save: float | None, status: str, plan: MakePlan, tmp_path: Path) -> None:
    write_steps(tmp_path / "measured", seconds, save)
    finding = found(plan("train.checkpoint_every=2", measured=str(tmp_path / "measured")))["lead time"]
    assert finding.status == status, finding


@pytest.mark.parametrize(
    "text",
    [
        '{"identity": []}',
        '{"identity": {"train.global_batch_size": 0}}',
        '{"identity": {"train.global_batch_size": "8"}}',
        '{"identity": {"train.global_batch_size": 8}, "save_seconds": "long"}',
        "[]",
        "{",
        '{"identity": {"model.hidden_size": {}}}',
    ],
)
def test_what_a_stranger_wrote_into_a_measured_run_is_no_measure(text: str, plan: MakePlan, tmp_path: Path) -> None:
    write_steps(tmp_path / "measured", 1.0)
    (tmp_path / "measured/run.json").write_text(text)
    for name, content in (
        ("metrics.jsonl", '{"step": 1, "step_seconds": -1}\n'),
        ("ranks/rank_00000.json", '{"ranks": 0}'),
    ):
        findings = found(plan(measured=str(tmp_path / "measured")))
        assert any(finding.status in ("problem", "not checked") for finding in findings.values()), findings
        (tmp_path / "measured" / name).write_text(content)


def test_a_save_is_estimated_by_the_disk_that_was_measured(plan: MakePlan) -> None:
    asked = plan()
    (asked.run_dir / "slurm").mkdir(parents=True)
    (asked.run_dir / "slurm/check.json").write_text(json.dumps({"disk_mb_per_second": 50.0}))
    assert save_seconds(asked, 500_000_000) == (10.0, f"at the 50 MB/s that all ranks wrote in {asked.run_dir}")


def test_flops_and_a_stated_peak_are_a_guess(plan: MakePlan) -> None:
    asked = plan("train.checkpoint_every=1000", gpus_per_node=1, peak_tflops=1e-6, mfu=0.5, time_limit="10")
    work = shapes(asked).flops_per_step()
    finding = found(asked)["first checkpoint"]
    assert finding.status == "warning" and f"{work / (1e6 * 0.5):.3g} s" in finding.text
    assert "by FLOPs, at 50% of 1e-06 TFLOP/s" in finding.text


def test_disk_room(plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan("train.keep_last=2", "train.checkpoint_every=10", "train.keep_every=100", "train.steps=500")
    size = shapes(asked).checkpoint_bytes()
    for free, status in ((8 * size, "ok"), (8 * size - 1, "problem")):  # 2, the one being written, and 5
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert found(asked)["disk"].status == status


def test_a_damaged_checkpoint_is_found(plan: MakePlan) -> None:
    asked = plan("train.steps=2")
    train_alone(*asked.overrides, f"run_dir={asked.run_dir}")
    checkpoint = newest_checkpoint(asked.run_dir / "checkpoints")
    assert checkpoint is not None and found(asked)["checkpoint"].status == "ok"
    (asked.run_dir / "verdict.json").write_text('{"exit_code": 0}')
    assert "the run is done" in found(asked)["run folder"].text
    assert found(plan("train.steps=4"))["run folder"].status == "ok"
    file = next(checkpoint.folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[:8] = (1 << 40).to_bytes(8, "little")
    file.write_bytes(data)
    finding = found(asked)["checkpoint"]
    assert finding.status == "problem" and "its index is too long" in finding.text
    file.write_bytes(data[:100])
    finding = found(asked)["checkpoint"]
    assert finding.status == "problem" and "none of the 1 checkpoints is complete" in finding.text


def test_a_sharded_checkpoint_is_read_with_its_parts(plan: MakePlan) -> None:
    asked = plan("train.steps=2", "engine=deepspeed", "engine.zero_stage=2", tasks_per_node=2)
    ranks = start_ranks(2, *asked.overrides, f"run_dir={asked.run_dir}")
    said = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "fits any layout" in found(plan("train.steps=2"))["checkpoint"].text  # by one rank, too
    (folder,) = (asked.run_dir / "checkpoints").iterdir()
    file = folder / "rank_00001.safetensors"
    index = file.read_bytes()
    file.write_bytes(index.replace(b"optimizer.", b"optimiser.", 1))
    finding = found(asked)["checkpoint"]
    assert finding.status == "problem" and "is missing: the file is damaged" in finding.text
    file.write_bytes(index)
    part = folder / "rank_00001.json"
    part.write_bytes(part.read_bytes().replace(b"0", b"1", 1))
    assert "damaged" in found(asked)["checkpoint"].text


def test_a_run_of_another_model_is_found(plan: MakePlan) -> None:
    asked = plan("train.steps=2")
    train_alone(*asked.overrides, f"run_dir={asked.run_dir}")
    finding = found(plan("train.steps=2", "model.hidden_size=64"))["run folder"]
    assert finding.status == "problem" and "model.hidden_size was 32, is 64" in finding.text


def test_a_shard_that_is_cut_short_is_found(plan: MakePlan, tmp_path: Path) -> None:
    import shutil

    asked = plan()
    shutil.copytree(asked.run.data.path or "", tmp_path / "data")
    shard = next((tmp_path / "data/train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    finding = found(plan(f"data.path={tmp_path}/data"))["data"]
    assert finding.status == "problem" and shard.name in finding.text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30", 95400), ("0-0:0:1", 1)),
        ("7-12:0:0", 648000),
    ],
)
def test_time_limits_are_read_as_slurm_does(text: str, seconds: int) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "1:2:3:4", "1-", "-1", "1h", "infinite", "1-1:1:1:1"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        limit_seconds(text)


@pytest.mark.parametrize(
    ("resources", "kind", "gpus"),
    [
        ("gpu:a100:4(S:0-1)", None, 4),
        ("gpu:a100:4(S:0-1)", "a100", 4),
        ("gpu:a100:4(S:0-1)", "h100", 0),
        ("gpu:8", None, 8),
        ("craynetwork:4,gpu:mi250:8(S:0-7)", None, 8),
        ("gpu:a100:2,gpu:v100:2", None, 4),
        ("(null)", None, 0),
    ],
)
def test_gpus_of_a_node_are_read_from_sinfo(resources: str, kind: str | None, gpus: int) -> None:
    assert Row("gpu", "up", "infinite", "1", "8", "1000", resources).gpus(kind) == gpus


def test_a_long_finding_is_indented() -> None:
    text = table([Finding("a", "ok", "one\ntwo"), Finding("longer", "not checked", "x")])
    assert text.splitlines() == ["a       ok           one", " " * 21 + "two", "longer  not checked  x"]
