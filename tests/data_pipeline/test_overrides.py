"""Overrides as people type them: read where they can be meant one way, else shown with the quotes they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.common.overrides import parse
from tests.helpers import prepare


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=données", "données"),
        ("a=日本 語", "日本 語"),
        ("a=~/x", "~/x"),
        ("a=b=c", "b=c"),
        ("a=c(1).txt", "c(1).txt"),
        ("a=c[1].txt", "c[1].txt"),
        (
            "a=[données, ~/x,b=c,d(1),e[1].txt,*.md,3,true]",
            ["données", "~/x", "b=c", "d(1)", "e[1].txt", "*.md", 3, True],
        ),
        ("a=[1, 2]", [1, 2]),
        ("a=[~]", ["~"]),
        ("+a='~'", "~"),
    ],
)
def test_what_can_be_meant_one_way_is_taken(text: str, value: object) -> None:
    problems: list[str] = []
    override = parse(text, problems)
    assert override is not None and override.value == value and problems == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a=[x", """quote it: "a='[x'\""""),
        ("a=x,y", """quote it: "a='x,y'\""""),
        ("a=x{1,2}", """quote it: "a='x{1,2}'\""""),
        ("a=[[x],~]", """quote it: "a=['[x]','~']\""""),
        ("a=it's", "quote it: 'a="),
        ("a=${b}", "interpolations are not supported"),
        ("a=[~,${b}]", "interpolations are not supported"),
        ("a=$\\{b}", "is not an override"),
        ("=x", ""),
        ("abc", "not an override of the form key=value"),
        ("a=" + "[" * 5000, "not an override of the form key=value"),
    ],
)
def test_what_cannot_is_shown_in_its_quoted_form(text: str, shown: str) -> None:
    problems: list[str] = []
    override = parse(text, problems)
    assert (override is None or override.key == "") and all(shown in problem for problem in problems), problems
    assert "token recognition" not in "".join(problems)


def test_the_shown_form_is_taken() -> None:
    for value in ("[x", "x,y", "it's", "x{1,2}"):
        problems: list[str] = []
        escaped = value.replace("'", "\\'")
        override = parse(f"a='{escaped}'", problems)
        assert override is not None and override.value == value


def test_one_message_for_one_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("corpus.inputs=[a", "output=o") == 2
    said = capsys.readouterr().err
    assert "corpus.inputs=[a" in said and "required" not in said and said.count("error:") == 1


def test_names_of_files_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "données (1)=[x]"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text("some words of a text\n" * 20 + str(i))
    small = ("tokenizer.vocab_size=300", "num_workers=0")
    assert prepare("corpus.inputs=[~/données (1)=[x]]", "output=~/prépare", *small) == 0
    assert (tmp_path / "prépare" / "manifest.json").is_file()
