"""Overrides as people type them: read where they can be meant one way, else shown with the quotes they need."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from data_pipeline.common.overrides import flat_list, parse
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
        ("a=" + "[" * 5000, "a: lists nested more than 20 deep"),
        ("a=" + "[" * 300 + "]" * 300, "a: lists nested more than 20 deep"),
        ("a=" + "{a:" * 100 + "1" + "}" * 100, "a: lists nested more than 20 deep"),
        ("a=" + "f(" * 100 + ")" * 100, "a: lists nested more than 20 deep"),
        ("a=" + "9" * 5000, "not an override of the form key=value"),
        ("a=[1," + "9" * 5000 + "]", "not an override of the form key=value"),
        ("a=[" + "[x]," * 40000 + "[x]]", "a: more than 4000 characters"),
        (r"a=$\{b\}", "interpolations are not supported"),
        (r"a=\${b}", "interpolations are not supported"),
        (r"a=\\$\{b\}", "interpolations are not supported"),
        (r"a=[x,$\{oc.env\:B\}]", "interpolations are not supported"),
        (r"a={b:[{c:$\{oc.env\:B\}}]}", "interpolations are not supported"),
        (r"a={$\{oc.env\:B\}:1}", "interpolations are not supported"),
    ],
)
def test_what_cannot_is_shown_in_its_quoted_form(text: str, shown: str) -> None:
    problems: list[str] = []
    override = parse(text, problems)
    assert (override is None or override.key == "") and all(shown in problem for problem in problems), problems
    assert "token recognition" not in "".join(problems) and len("".join(problems)) < 1000


ITEM_CHARACTERS = "aZé_019-+.eE/: =%@?*'tfn\t"


def test_items_of_long_lists_mean_what_they_mean_to_hydra() -> None:
    """Long lists are read item by item, some without Hydra's parser."""
    draw = random.Random(1)
    words = [
        "true",
        "NULL",
        "nan",
        "-inf",
        "1e5",
        "1_000",
        "0x1",
        "-0",
        "007",
        "+1",
        "'a b'",
        "'1'",
        "a.b",
        "/x-y",
        "inf",
    ]
    words += ["".join(draw.choices(ITEM_CHARACTERS, k=draw.randint(1, 6))) for _ in range(1500)]
    for word in words:
        text, same = f"a=[{word},x]", []
        taken = parse(text, same)
        if flat_list(text) is None:
            continue
        try:
            value = OverridesParser.create().parse_override(text).value()
        except HydraException:
            continue  # with quotes it may be one text; the cases above say when
        assert taken is not None and repr(taken.value) == repr(value), text


@pytest.mark.parametrize("item", ["/data/file{:05}.txt", "'a {}'", "é{}", "{}", "{}.5"])
def test_a_long_list_takes_linear_time(item: str) -> None:
    numbers = range(120_000 // (len(item) + 5))
    start = time.process_time()
    override = parse(f"corpus.inputs=[{','.join(item.format(n) for n in numbers)}]", [])
    assert override is not None and len(override.value) == len(numbers)
    assert time.process_time() - start < 40  # above a minute as one list


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
