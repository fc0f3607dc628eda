from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.common.errors import InputError
from data_pipeline.sources.text import TextConfig, TextSource


def source(*inputs: Path | str, **changes: Any) -> TextSource:
    values: dict[str, Any] = {
        "kind": "text",
        "inputs": [str(i) for i in inputs],
        "exclude": [],
        "text_field": "text",
        "max_document_bytes": 1000,
        "max_bad_lines": 0,
    }
    return TextSource(TextConfig(**{**values, **changes}))


def texts(*inputs: Path | str, **changes: Any) -> list[str]:
    return [d.text for d in source(*inputs, **changes).documents()]


def jsonl(*values: str) -> bytes:
    return b"".join(json.dumps({"text": v}).encode() + b"\n" for v in values)


def test_folders_files_and_globs_in_one_order_without_repeats(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.py", "sub/d.jpg"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    expected = ["a.md", "b.txt", "sub/c.py"]
    assert texts(tmp_path) == expected
    assert texts(tmp_path / "sub", tmp_path / "*.txt", tmp_path / "a.md", tmp_path) == expected
    assert texts(f"{tmp_path}/**/*.py") == ["sub/c.py"]
    assert texts(tmp_path, exclude=["*/sub/*"]) == ["a.md", "b.txt"]
    assert [d.source for d in source(tmp_path / "b.txt").documents()] == [str(tmp_path / "b.txt")]


def test_text_comes_byte_for_byte(tmp_path: Path) -> None:
    text = "\ufeffa\r\nb\rc\n\n \x00 中"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(tmp_path) == [text]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    two_frames = [jsonl("one", "zwei\n中") + b"\n", jsonl("", "three")]
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix]
    (tmp_path / f"a{suffix}").write_bytes(b"".join(pack(frame) for frame in two_frames))
    assert texts(tmp_path) == ["one", "zwei\n中", "three"]


@given(st.text(st.sampled_from("ab\n中😀"), max_size=200))
def test_long_documents_are_cut_at_line_borders(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("cut") / "a.txt"
    file.write_bytes(text.encode())
    parts = texts(file, max_document_bytes=16)
    assert "".join(parts) == text
    assert all(0 < len(part.encode()) <= 16 for part in parts)
    for part, following in pairwise(parts):
        assert part.endswith("\n") or ("\n" not in part and len((part + following).encode()) > 16)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_compressed_file_that_is_cut_short(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix.endswith("gz") else zstandard.compress
    data = pack(jsonl(*(f"document {i * 7919 % 1000}" for i in range(2000))))
    (tmp_path / f"a{suffix}").write_bytes(data[:-20])
    with pytest.raises(InputError, match="damaged or truncated"):
        texts(tmp_path, max_bad_lines=5)
    (tmp_path / f"a{suffix}").write_bytes(b"not compressed at all")
    with pytest.raises(InputError, match="damaged or truncated"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "line 2: not JSON"),
        (b'{"body": "x"}', "line 2: no text in the field 'text'.* body"),
        (b"[1]", "line 2: no text"),
        (b'{"text": 3}', "line 2: no text"),
        (b'"\xff"', "line 2: not UTF-8 at byte 1"),
        (b'{"text": "\\ud800"}', "line 2: an unpaired surrogate"),
    ],
)
def test_bad_lines_stop_above_the_limit(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl("x") + line + b"\n" + jsonl("y"))
    with pytest.raises(InputError, match=f"{file}, {message}"):
        texts(file)
    tolerant = source(file, max_bad_lines=1)
    assert [d.text for d in tolerant.documents()] == ["x", "y"]
    assert len(tolerant.bad_lines) == 1


def test_text_that_is_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"line\n" * 500 + b"ab\xe9\n")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 at byte 2502"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "does not exist"),
        ("*.md", "matches no files"),
        ("picture.jpg", "has an unsupported type"),
        ("empty", "has no files ending in"),
        ("*.jpg", "has no files ending in"),
    ],
)
def test_inputs_that_lead_nowhere(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        source(tmp_path / name)


def test_every_bad_input_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)a\.txt.*b\.txt"):
        source(tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(InputError, match=r"corpus\.inputs is empty"):
        source()
