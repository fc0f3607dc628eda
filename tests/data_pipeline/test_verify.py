"""Prepared data stay what they were: sums from the time of writing, compared whenever preparation looks again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.common.files import sha256
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.record import begin_record
from data_pipeline.sources.digits import write_digits
from tests.helpers import command, prepare

TEXT = ("tokenizer.vocab_size=300", "valid_fraction=0.1", "block_tokens=2000", "shard_bytes=20000", "min_shards=1")
IMAGES = ("corpus=images", "valid_fraction=0.1", "shard_bytes=40000", "min_shards=1")


class Prepared:
    """A small set of either kind, its inputs, and the command that wrote it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.inputs, self.root = folder / "inputs", folder / "out"
        self.overrides = TEXT if kind == "text" else IMAGES

    def write_inputs(self) -> None:
        if self.overrides is IMAGES:
            write_digits(self.inputs, count=120)
            return
        self.inputs.mkdir()
        for i in range(60):
            (self.inputs / f"{i:02d}.txt").write_text(" ".join(f"word {i * j % 37} of text {i}." for j in range(150)))

    def prepare(self) -> int:
        return prepare(*self.overrides, f"corpus.inputs=[{self.inputs}]", f"output={self.root}", "num_workers=0")

    def verify(self) -> int:
        return command("data_pipeline.prepare", "verify", f"output={self.root}")

    def shard(self, number: int, split: str = "train") -> Path:
        return self.root / load_manifest(self.root).splits[split].shards[number].name

    def contents(self) -> dict[str, bytes]:
        return {
            p.relative_to(self.root).as_posix(): p.read_bytes()
            for p in sorted(self.root.rglob("*"))
            if p.is_file() and p.name not in (".lock", "plan.json")
        }


@pytest.fixture(scope="module", params=["text", "images"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    made = Prepared(tmp_path_factory.mktemp("original"), request.param)
    made.write_inputs()
    assert made.prepare() == 0
    assert len(load_manifest(made.root).splits["train"].shards) > 4
    return made


@pytest.fixture
def copied(original: Prepared, tmp_path: Path) -> Prepared:
    shutil.copytree(original.root, tmp_path / "out")
    made = Prepared(tmp_path, "text" if original.overrides is TEXT else "images")
    made.inputs = original.inputs
    return made


def flip(path: Path, byte: int = 600) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def nothing(data: Prepared) -> None: ...


def a_missing_shard(data: Prepared) -> None:
    data.shard(3).unlink()


def a_missing_shard_before(data: Prepared) -> None:
    data.shard(0).unlink()


def other_times(data: Prepared) -> None:
    for path in data.inputs.rglob("*"):
        os.utime(path, (1e9, 1e9 + os.getpid() % 1000))


def no_manifest(data: Prepared) -> None:
    """As if the preparation had been stopped before its end, and the shard damaged in between."""
    splits = {split: found.shards for split, found in load_manifest(data.root).splits.items()}
    info = load_manifest(data.root).tokenizer
    begin_record(str(data.root), splits, info.fingerprint if info else None)
    (data.root / "manifest.json").unlink()


def no_record(data: Prepared) -> None:
    """As a version without sums.jsonl left it."""
    (data.root / "manifest.json").unlink()


@pytest.mark.parametrize("damaged", ["tar", "index"])
@pytest.mark.parametrize(
    "besides", [nothing, a_missing_shard, a_missing_shard_before, other_times, no_manifest, no_record]
)
def test_a_damaged_shard_is_written_again_and_never_certified(
    original: Prepared, copied: Prepared, damaged: str, besides: Callable[[Prepared], None]
) -> None:
    tar = copied.shard(1)
    flip(tar if damaged == "tar" else tar.with_suffix(".index.npz"))
    besides(copied)
    assert copied.prepare() == 0
    assert copied.contents() == original.contents()
    assert copied.verify() == 0


def test_what_is_whole_is_left_alone(copied: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    copied.prepare()  # its inputs may have got other times
    before = {p: p.stat().st_mtime_ns for p in copied.root.rglob("*")}
    capsys.readouterr()
    assert copied.prepare() == 0 and copied.verify() == 0
    out = capsys.readouterr().out
    assert "already complete" in out and "as they were written" in out
    assert {p: p.stat().st_mtime_ns for p in copied.root.rglob("*")} == before


def test_shards_before_the_damaged_one_are_kept(copied: Prepared) -> None:
    copied.prepare()
    first, second = copied.shard(0), copied.shard(1)
    kept = first.stat().st_ino
    flip(second)
    assert copied.prepare() == 0
    assert first.stat().st_ino == kept


def test_a_sum_is_of_what_was_to_be_written(
    original: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that keeps other bytes than it was given."""
    from data_pipeline.shards import tar

    made = Prepared(tmp_path, "text" if original.overrides is TEXT else "images")
    made.inputs = original.inputs
    rename = tar.rename

    def damaging(source: str, target: str) -> None:
        rename(source, target)
        if target.endswith("train/shard-000002.tar"):
            flip(Path(target))

    monkeypatch.setattr(tar, "rename", damaging)
    assert made.prepare() == 0
    assert (made.root / "manifest.json").read_bytes() == (original.root / "manifest.json").read_bytes()
    assert made.verify() == 2
    assert "train/shard-000002.tar differs" in capsys.readouterr().err


def test_verify_names_everything_that_is_damaged(copied: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copied.shard(1))
    copied.shard(2).unlink()
    flip(copied.shard(0, "valid").with_suffix(".index.npz"))
    copied.shard(3).write_bytes(b"short")
    before = copied.contents()
    assert copied.verify() == 2
    message = capsys.readouterr().err
    for expected in (
        "train/shard-000001.tar differs from the manifest: sha256 expected",
        "train/shard-000002.tar is missing",
        "train/shard-000003.tar has 5 bytes, the manifest says",
        "valid/shard-000000.index.npz differs from the manifest",
        "4 problems",
        "writes damaged shards again",
    ):
        assert expected in message
    assert "shard-000000.tar " not in message
    assert copied.contents() == before, "it only looks"


def test_verify_looks_at_the_tokenizer(copied: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    info = copied.root / "tokenizer/tokenizer_info.json"
    if not info.exists():
        pytest.skip("images have none")
    values = json.loads(info.read_text())
    values["ids"]["bos"], values["ids"]["eos"] = values["ids"]["eos"], values["ids"]["bos"]
    info.write_text(json.dumps(values))
    assert copied.verify() == 2 and "is not the tokenizer" in capsys.readouterr().err
    before = copied.contents()
    copied.shard(0).unlink()
    assert copied.prepare() == 2 and "is not the tokenizer" in capsys.readouterr().err
    assert copied.contents().keys() == before.keys() - {"train/shard-000000.tar"}


def test_a_leftover_shard_does_not_stay_beside_those_of_the_manifest(
    copied: Prepared, original: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(copied.shard(0), copied.root / "train/shard-000099.tar")
    (copied.root / "train/shard-000000.tar.bak").write_bytes(b"a user's own")
    assert copied.verify() == 2 and "train/shard-000099.tar is not in the manifest" in capsys.readouterr().err
    copied.shard(1).unlink()
    assert copied.prepare() == 0
    assert copied.contents().keys() - original.contents().keys() == {"train/shard-000000.tar.bak"}
    assert copied.verify() == 0


def test_verify_refuses_what_is_no_prepared_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data_pipeline.prepare", "verify", f"output={tmp_path}") == 2
    assert f"{tmp_path}/manifest.json is missing" in capsys.readouterr().err
    assert command("data_pipeline.prepare", "verify") == 2
    assert "output" in capsys.readouterr().err
    assert command("data_pipeline.prepare", "verify", "--help") == 0
    assert "num_workers" in capsys.readouterr().out


def test_a_link_in_the_place_of_a_split_is_not_written_through(
    copied: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(copied.root / "train", tmp_path / "elsewhere")
    (copied.root / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/shard-000001.tar").unlink()
    before = {p.name: sha256(p) for p in (tmp_path / "elsewhere").iterdir()}
    assert copied.verify() == 2 and "is a link that leads out of" in capsys.readouterr().err
    assert copied.prepare() == 2 and "train is a link" in capsys.readouterr().err
    assert {p.name: sha256(p) for p in (tmp_path / "elsewhere").iterdir()} == before


def test_a_plan_with_any_other_value_is_refused_or_taken_for_other_data(
    copied: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = json.loads((copied.root / "plan.json").read_text())
    places = [(key,) for key in plan] + [("scan", key) for key in plan["scan"]]
    copied.shard(1).unlink()  # so that the plan is needed
    before = copied.contents()
    for place in places:
        for bad in (None, True, -1, 1.5, 10**12, 10**25, "x", [], {}):
            values = json.loads(json.dumps(plan))
            (values if len(place) == 1 else values["scan"])[place[-1]] = bad
            (copied.root / "plan.json").write_text(json.dumps(values))
            code, message = copied.prepare(), capsys.readouterr().err
            if place == ("listing",) and isinstance(bad, str):
                assert code == 0
                copied.shard(1).unlink()
            else:
                assert code == 2 and str(copied.root) in message, (place, bad)
    assert copied.contents().keys() == before.keys()
