"""Raw files that somebody else made: read, counted as left out, or refused by name, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.sources.images import classes_of
from data_pipeline.sources.text import TextConfig, TextSource
from tests.helpers import prepare
from tests.images import png

MEGABYTE = 1 << 20


def source(*inputs: Path | str, **changes: object) -> TextSource:
    return TextSource(TextConfig(kind="text", inputs=[str(i) for i in inputs], **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("content", [bytes(128 * MEGABYTE), b'{"text": "' + b"a" * (128 * MEGABYTE)])
def test_an_archive_of_one_endless_line_is_a_bad_line_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes
) -> None:
    monkeypatch.setattr("data_pipeline.sources.text.MAX_LINE_BYTES", 4 * MEGABYTE)
    packed = gzip.compress(content + b"\n", 1) if suffix == "gz" else zstandard.compress(content + b"\n")
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(packed)
    (tmp_path / "b.jsonl").write_text('{"text": "here"}\n')
    started = time.monotonic()
    tracemalloc.start()
    read = source(tmp_path, max_bad_lines=1)
    assert [document.text for document in read.documents()] == ["here"]
    assert read.bad_lines == [f"{tmp_path}/a.jsonl.{suffix}, line 1: longer than {4 * MEGABYTE} bytes"]
    assert tracemalloc.get_traced_memory()[1] < 40 * MEGABYTE and time.monotonic() - started < 20
    tracemalloc.stop()
    with pytest.raises(InputError, match=f"{tmp_path}/a.jsonl.{suffix}, line 1: longer than"):
        list(source(tmp_path).documents())


@pytest.mark.parametrize("megabytes", [8, 32])
def test_a_long_line_takes_time_in_proportion_to_its_length(tmp_path: Path, megabytes: int) -> None:
    line = json.dumps({"text": "a" * (megabytes * MEGABYTE)}).encode() + b"\n"
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line))
    started = time.process_time()
    assert sum(len(document.text) for document in source(tmp_path).documents()) == megabytes * MEGABYTE
    assert time.process_time() - started < 0.1 * megabytes


@pytest.mark.parametrize("pattern", ["*.txt", "**", "", "pipe.txt", "zero.txt"])
def test_pipes_and_devices_are_not_opened(tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    named = pattern in ("pipe.txt", "zero.txt")
    for some in [] if named else [tmp_path / "a.txt"]:
        some.write_text("text")
    if named:
        with pytest.raises(InputError, match=f"{tmp_path}/{pattern} is neither a file nor a folder"):
            source(tmp_path / pattern)
        return
    read = source(os.path.join(tmp_path, pattern))
    assert [document.text for document in read.documents()] == ["text"]
    assert "2 sockets, pipes and devices" in str(read.left_out)


def write_pictures(folder: Path, labels: list[str], count: int = 3) -> None:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            (folder / label / f"{i}.png").write_bytes(png(np.full((8, 8, 3), 10 * (ord(label) - 97) + i, np.uint8)))


def prepare_images(inputs: Path, output: Path) -> int:
    return prepare(
        "corpus=images", f"corpus.inputs=['{inputs}']", f"output={output}", "num_workers=0", "valid_fraction=0.3"
    )


def test_a_class_folder_may_hold_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "in", ["a", "b"])
    os.mkfifo(tmp_path / "in/a/pipe.png")
    (tmp_path / "in/b/zero.png").symlink_to("/dev/zero")
    (tmp_path / "in" / "b").rename(tmp_path / "in" / os.fsdecode(b"\xff"))
    assert prepare_images(tmp_path / "in", tmp_path / "out") == 0
    assert "2 sockets, pipes and devices" in capsys.readouterr().out
    assert load_manifest(tmp_path / "out").classes == ("\\xff", "a")


def test_lists_with_any_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, ["x"], count=4)
    files = [f"x/{i}.png" for i in range(4)]

    def write(*labels: object) -> Path:
        entries = zip(files, (*labels, *["7"] * (4 - len(labels))), strict=True)
        path = tmp_path / "list.jsonl"
        path.write_text("".join(json.dumps({"file": file, "label": label}) + "\n" for file, label in entries))
        return path

    for number, labels in enumerate((["9" * 900, "10", "007"], ["\ud800", "\udfff"], ["\x1b[2J"], [3, "3", 0])):
        assert prepare_images(write(*labels), tmp_path / f"out{number}") == 0, labels
    assert load_manifest(tmp_path / "out0").classes == ("007", "7", "10", "9" * 900)
    for label in ("9" * 5000, int("9" * 4000), True, None, 1.5, [], {}, "", " ", "a\nb", "a\u2028b", "x" * 10**6):
        assert prepare_images(write(label), tmp_path / "none") == 2
        assert f"{tmp_path}/list.jsonl" in capsys.readouterr().err
    (tmp_path / "list.jsonl").write_text('{"file": "x/0.png", "label": ' + "9" * 5000 + "}\n")
    assert prepare_images(tmp_path / "list.jsonl", tmp_path / "none") == 2


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_list_without_line_ends_is_refused(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"list.{suffix}"
    with open(path, "wb") as sparse:
        sparse.truncate(20 << 30)
    started = time.monotonic()
    assert prepare_images(path, tmp_path / "out") == 2
    assert f"{path} cannot be read" in capsys.readouterr().err and time.monotonic() - started < 10


def test_labels_that_are_numbers_are_ordered_by_value_however_long() -> None:
    assert classes_of(["10", "9", "0", "00", "010", "1" + "0" * 5000]) == (
        "0",
        "00",
        "9",
        "010",
        "10",
        "1" + "0" * 5000,
    )
