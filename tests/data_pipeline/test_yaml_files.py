"""YAML that others wrote: what it must not hold is named, in bounded time."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.common.yaml_files import checked_text, read_yaml

LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "line 1 is nested too deeply"),
        ("{a: " * 60_000, "line 1 is nested too deeply"),
        ("- " * 100_000, "line 1 is nested too deeply"),
        (LAUGHS, "line 2: the alias *a is not supported"),
        ("a: &a [*a]", "the alias *a is not supported"),
        ("a: !!python/object/apply:os.system [true]", "python/object/apply:os.system is not supported"),
        ("a: !!binary aGk=", "binary is not supported"),
        ("a: !x 1", "the tag !x is not supported"),
        ("a: [" + "x," * 100_000 + "]", "more than 20000 values"),
        ("a:\n" * 60_000, "more than 20000 values"),
        ("a: ${" + "${a" * 1000, "an interpolation of more than 1000 characters"),
        ("a: x" * 100_000, "cannot be read: it is larger than 262144 bytes"),
        (b"a: \xff", "is not UTF-8 (invalid start byte at byte 3)"),
        ("a: {b", "is not YAML"),
        ("\0", "is not YAML"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_what_no_configuration_may_hold(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    for read in (checked_text, read_yaml):
        with pytest.raises(InputError, match=re.escape(str(file)) + ".*" + re.escape(message)):
            read(file)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", ["a: 1\na: 2", "? [a]\n: b", "--- a\n--- b", "null: 1", "a: " + "9" * 5000, "a: ${b}"])
def test_what_no_run_writes(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert checked_text(tmp_path / "x.yaml") == text
    with pytest.raises(InputError, match=str(tmp_path / "x.yaml")):
        read_yaml(tmp_path / "x.yaml")


def test_a_pipe_is_no_yaml_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(InputError, match=r"x\.yaml cannot be read: it is a named pipe"):
        read_yaml(tmp_path / "x.yaml")
