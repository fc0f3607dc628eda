"""A tokenizer.json that somebody else made is used, or refused by name: in bounded time and memory, nothing aborts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers import trial
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import ROOT, prepare

Values = dict[str, Any]
CATASTROPHE = "(([a-z ])+.)+[A-Z]{3}([a-z ])+$"


@pytest.fixture(scope="module")
def plain() -> str:
    """A byte-level BPE tokenizer.json, as GPT-2's."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    made.train_from_iterator(["the quick brown fox " * 50], trainer)
    return made.to_str()


def model(**changes: Any) -> Callable[[Values], None]:
    return lambda values: values["model"].update(changes)


def steps(part: str, *entries: Values) -> Callable[[Values], None]:
    kind = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[part]
    return lambda values: values.update({part: {"type": "Sequence", kind: list(entries)}})


def replace(old: str, new: str, regex: bool = False) -> Values:
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": old}, "content": new}


def far_id(values: Values) -> None:
    values["model"]["vocab"]["far"] = 4294967295


def sparse_id(values: Values) -> None:
    values["model"]["vocab"]["far"] = 10**6


def same_id(values: Values) -> None:
    values["model"]["vocab"]["same"] = 5


def added_far(values: Values) -> None:
    values["added_tokens"][0]["id"] = 4294967295


def without_model(values: Values) -> None:
    del values["model"]


def split(pattern: str) -> Values:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


REFUSED = {
    "dropout": (model(dropout=0.5), "model.dropout=0.5"),
    "far id": (far_id, "'far' has the id 4294967295"),
    "sparse ids": (sparse_id, "ids up to 1000000"),
    "negative id": (lambda v: v["model"]["vocab"].update(a=-1), "'a' has the id -1"),
    "an id that is a word": (lambda v: v["model"]["vocab"].update(a="7"), "'a' has the id 7"),
    "an id that is true": (lambda v: v["model"]["vocab"].update(a=True), "'a' has the id True"),
    "same id": (same_id, "the same id"),
    "added far": (added_far, "has the id 4294967295"),
    "added without content": (lambda v: v["added_tokens"][0].pop("content"), "no content"),
    "added that is no list": (lambda v: v.update(added_tokens={}), "not a list"),
    "empty vocabulary": (model(vocab={}, merges=[]), "no vocabulary"),
    "vocabulary of another type": (model(vocab=[1, 2]), "no vocabulary"),
    "no model": (without_model, "no model"),
    "a merge that is no piece": (model(merges=[["q", "zzz"]]), "cannot encode every text"),
    "unknown kind": (model(type="Other"), "cannot encode every text"),
    "word level without unk": (
        lambda v: v.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}),
        "cannot encode every text.*[Mm]issing",
    ),
    "word piece without unk": (
        lambda v: v.update(
            model={
                "type": "WordPiece",
                "vocab": {"a": 0},
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
            }
        ),
        "cannot encode every text.*[Mm]issing",
    ),
    "a catastrophic pattern": (steps("pre_tokenizer", split(CATASTROPHE)), "cannot encode every text|takes more than"),
    "10 MB for a letter": (steps("normalizer", replace("a", "x" * 10**7)), "cannot encode|ends a process|takes more"),
    "30 doublings": (steps("normalizer", *[replace("a", "aa")] * 30), "cannot encode|ends a process|takes more"),
    "doublings of a rare letter": (
        steps("normalizer", *[replace("\u10d0", "\u10d0\u10d0")] * 30),
        "cannot encode|ends a process|takes more",
    ),
    "doublings by a pattern": (
        steps("normalizer", *[replace("[q]", "qq", regex=True)] * 30),
        "cannot encode|ends a process|takes more",
    ),
    "a map of characters that is none": (
        steps("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}),
        "cannot encode|ends a process|takes more",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_in_bounds(plain: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CPU_SECONDS", 4)
    change, message = REFUSED[case]
    values = json.loads(plain)
    change(values)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    started = time.monotonic()
    with pytest.raises(InputError, match=f"(?s){path}: .*({message})"):
        Tokenizer.from_file(str(path))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"null", b'{"model": 3}', b"\xff", b"{}"])
def test_what_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: not a Hugging Face tokenizer.json"):
        Tokenizer.from_file(str(path))


def test_a_plain_one_is_used_and_a_dropout_of_zero_is_none(plain: str, tmp_path: Path) -> None:
    values = json.loads(plain)
    values["model"]["dropout"] = 0.0
    values["normalizer"] = json.loads(normalizers.NFKC().__getstate__())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    tokenizer = Tokenizer.from_file(str(path))
    assert tokenizer.decode(tokenizer.encode("the quick")) == "the quick"


def test_a_text_on_which_the_library_panics_ends_preparation_with_2(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The trial has not met such a text."""
    from data_pipeline.tokenizers import tokenizer_json

    monkeypatch.setattr(tokenizer_json, "check_trial", lambda data: None)
    values = json.loads(plain)
    steps("pre_tokenizer", split(CATASTROPHE))(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"{i} " + "the quick brown fox jumps over the lazy dog " * 20)
    common = (f"corpus.inputs=['{tmp_path}/*.txt']", f"output={tmp_path / 'out'}", "num_workers=0")
    assert prepare(*common, f"tokenizer.path={tmp_path}/tokenizer.json") == 2
    assert "the tokenizer cannot encode the text that begins with" in capfd.readouterr().err


def test_the_trial_keeps_lower_limits_of_the_job(plain: str) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "resource.setrlimit(resource.RLIMIT_CPU, (9, 9));"
        "from data_pipeline.tokenizers.trial import check_trial; check_trial(sys.stdin.buffer.read())"
    )
    subprocess.run([sys.executable, "-c", code], input=plain.encode(), check=True, cwd=ROOT)


def test_the_trial_imports_nothing_of_the_working_directory(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizers.py").write_text(f"open('{tmp_path}/ran', 'w')\nraise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    trial.check_trial(plain.encode())
    assert not (tmp_path / "ran").exists()


INFO: dict[str, Any] = {
    "type": ("other", None, 3, ["sentencepiece"]),
    "escaped": (None, 1, "true"),
    "format": (2, "1", None),
    "ids": (None, [], "x", {}),
    "vocab_size": (None, -1, 10**12, "x"),
    "total_size": (None, -1, 10**12),
    "sha256": (None, "0" * 64),
}
IDS = (None, -1, True, 1.5, "1", 10**12, [], {})


def test_a_tokenizer_info_with_any_other_value_is_refused(plain: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(plain)
    folder = tmp_path / "saved"
    Tokenizer.from_file(str(tmp_path / "tokenizer.json")).save(folder)
    assert Tokenizer.load(folder).total_size > 300
    info = json.loads((folder / "tokenizer_info.json").read_text())
    changed = [{**info, key: value} for key, values in INFO.items() for value in values]
    changed += [{**info, "ids": {**info["ids"], key: value}} for key in info["ids"] for value in IDS]
    changed += [{key: value for key, value in info.items() if key != left_out} for left_out in info]
    changed += [{**info, "ids": {k: v for k, v in info["ids"].items() if k != left_out}} for left_out in info["ids"]]
    for values in changed:
        (folder / "tokenizer_info.json").write_text(json.dumps(values))
        with pytest.raises(InputError, match=r"tokenizer_info\.json"):
            Tokenizer.load(folder)
    assert len(changed) > 100
