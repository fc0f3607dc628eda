from __future__ import annotations

import gzip
import json
import os
import re
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.common.errors import InputError
from data_pipeline.sources.compressed import open_compressed
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
    assert "".join(parts) == (text if text.strip() or len(text.encode()) > 16 else "")
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
        (b"[1]", "line 2: no text .* it is a list, no object"),
        (b'{"text": 3}', r"line 2: no text .*: it is a number \(3\)"),
        (b'{"text": null}', "line 2: no text .*: it is null"),
        (b'{"text": true}', "line 2: no text .*: it is true"),
        (b'{"text": {"text": "x"}}', "line 2: no text .*: it is an object"),
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
    (tmp_path / "b.txt").write_text("good")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(
        InputError, match=r"(?s)a\.txt: not UTF-8 at byte 2502.*c\.txt: .*byte 0.*2 files.*encoding=auto"
    ):
        texts(tmp_path)


def test_other_encodings_are_read_by_name_or_found(tmp_path: Path) -> None:
    umlauts = "Schöne Grüße aus Köln, wo die Bäume blühen und die Vögel fröhlich über den Flüssen kreisen.\n" * 30
    (tmp_path / "a.txt").write_bytes(umlauts.encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(umlauts.encode("utf-16"))
    (tmp_path / "c.txt").write_bytes(umlauts.encode())
    found = source(tmp_path, encoding="auto", max_document_bytes=100000)
    assert [d.text for d in found.documents()] == [umlauts] * 3
    assert sum(found.encodings.values()) == 2 and found.replaced == 0
    cut = source(tmp_path / "a.txt", encoding="latin-1", max_document_bytes=50)
    assert "".join(d.text for d in cut.documents()) == umlauts
    lossy = source(tmp_path / "a.txt", encoding="ascii", max_document_bytes=100000)
    assert [d.text for d in lossy.documents()] == [umlauts.encode("latin-1").decode("ascii", "replace")]
    assert lossy.replaced == sum(ord(c) > 127 for c in umlauts)
    line = json.dumps({"text": "Grüße"}, ensure_ascii=False).encode("cp1252")
    (tmp_path / "d.jsonl").write_bytes(line)
    assert texts(tmp_path / "d.jsonl", encoding="cp1252") == ["Grüße"]
    for name in ("klingon", "rot13", "base64"):
        with pytest.raises(InputError, match=f"corpus.encoding={name} is not an encoding"):
            source(tmp_path, encoding=name)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("été", "latin-1"),
        ("El niño comió piña y bebió café mañana.", "latin-1"),
        ("“quoted” text — here", "cp1252"),
        ("Привет мир, как дела сегодня", "cp1251"),
        ("Привет мир, как дела сегодня", "koi8_r"),
        ("Zażółć gęślą jaźń, mój drogi przyjacielu", "iso8859_2"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "cp1250"),
        ("Καλημέρα κόσμε, τι κάνετε σήμερα;", "cp1253"),
        ("日本語のテキストです。これは例です。", "shift_jis"),
        ("中文文本测试，这是一个例子。", "gb18030"),
        ("plain " * 10000 + "naïve café", "latin-1"),
        ("große Wörter", "utf-16"),
    ],
)
def test_an_encoding_is_found(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert texts(tmp_path, encoding="auto", max_document_bytes=100000) == [text]


def test_nested_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"meta": {"text": "x"}}\n{"meta.text": "y", "meta": {"text": "z"}}\n')
    assert texts(tmp_path, text_field="meta.text") == ["x", "y"]
    with pytest.raises(InputError, match=r"line 1: no text in the field 'meta.body'.* meta has: text"):
        texts(tmp_path, text_field="meta.body")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"meta": null}', "meta is null"),
        ('{"meta": [1]}', "meta is a list"),
        ('{"meta": {"a": 1}}', "meta has: a$"),
        ('{"other": 1}', "it has: other$"),
        ('{"meta": {"text": null}}', "it is null"),
    ],
)
def test_where_a_nested_field_ends_is_told(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        texts(tmp_path, text_field="meta.text")
    assert re.search(told, str(caught.value).splitlines()[0])


@pytest.mark.parametrize("length", [0, 3, (1 << 16) - 1, 1 << 16])
def test_an_encoding_is_found_where_the_last_byte_alone_is_not_utf8(tmp_path: Path, length: int) -> None:
    before = ("Voici le caf\n" * (length // 13 + 1))[:length]
    (tmp_path / "a.txt").write_bytes(before.encode() + b" caf\xe9")
    (text,) = texts(tmp_path, encoding="auto", max_document_bytes=1 << 20)
    assert text == before + " café"


def test_blank_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n\n{"text": "\\ufeff\\n"}\n{"text": "x"}\n')
    (tmp_path / "b.txt").write_text("\n\t\n")
    found = source(tmp_path)
    assert [d.text for d in found.documents()] == ["x"]
    assert str(found.left_out) == "left out: 1 blank lines, 3 documents without text"


def test_what_a_folder_holds_is_read_or_told(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "in"
    for place in (outside, folder / ".git", folder / ".ipynb_checkpoints", folder / "out" / "train"):
        place.mkdir(parents=True)
        (place / "x.txt").write_text(place.name)
    (folder / "PG100.TXT").write_text("upper")
    (folder / "a.JSONL").write_bytes(jsonl("lines"))
    (folder / "linked").symlink_to(outside)
    (folder / "round").symlink_to(folder)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (folder / "self").symlink_to(folder / "self")
    (folder / ".hidden.txt").write_text("")
    (folder / "scan.pdf").write_bytes(b"")
    (folder / "more.tar").write_bytes(b"")
    os.mkfifo(folder / "pipe.txt")
    found = TextSource(TextConfig(kind="text", inputs=[str(folder)]), skip=str(folder / "out"))
    assert [d.text for d in found.documents()] == ["upper", "lines", "outside"]
    assert str(found.left_out) == (
        "left out: 2 dangling links, 1 files ending in .pdf, 1 folders that are linked again, 1 hidden files, "
        "2 hidden folders, 1 sockets, pipes and devices, "
        "1 tars, which are read where they are named, as in 'folder/*.tar'"
    )
    assert texts(folder / "*.TXT") == ["upper"]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/*/*.txt"])
def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.txt").write_text("x")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(folder: str) -> Any:
        if str(folder).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # the superuser may read everything
    with pytest.raises(InputError, match=r"corpus.inputs: .*closed/? cannot be read: Permission denied"):
        source(f"{tmp_path}{pattern}")


def test_zst_of_a_window_beyond_the_default(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(jsonl("one")) + compressor.flush()
    with pytest.raises(zstandard.ZstdError):
        zstandard.ZstdDecompressor().decompressobj().decompress(data)
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert texts(tmp_path) == ["one"]


def test_zst_bombs_take_linear_time_and_bounded_memory(tmp_path: Path) -> None:
    line, count = jsonl("the same line again"), 1 << 22
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line * count))
    tracemalloc.start()
    started = time.monotonic()
    with open_compressed(str(tmp_path / "a.jsonl.zst")) as file:
        assert sum(len(part) for part in iter(lambda: file.read(1 << 16), b"")) == len(line) * count
    assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 50e6 < len(line) * count
    tracemalloc.stop()


def test_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.sources.text.MAX_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl("x" * 500, "y"))
    with pytest.raises(InputError, match="line 1: longer than 100 bytes"):
        texts(tmp_path)
    assert texts(tmp_path, max_bad_lines=1) == ["y"]


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
