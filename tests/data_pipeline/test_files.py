"""The one door to storage: what goes through it, and that nothing goes past it."""

from __future__ import annotations

import ast
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fsspec
import pytest

from data_pipeline.common import files
from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json, read_json_if_there, read_typed, write_json
from data_pipeline.shards.images import ImageReader
from data_pipeline.shards.manifest import check_files, load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import ROOT, prepare
from tests.images import prepare_images, write_digits

DATA_SET_ROOMS = ("shards", "stream", "tokenizers")
OPENERS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "is_file", "is_dir", "stat", "unlink"}


@pytest.fixture
def bucket() -> Iterator[str]:
    """A URL of storage that is no disk of this machine."""
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def upload(folder: Path, url: str) -> str:
    fsspec.filesystem("memory").put(str(folder), url, recursive=True)
    return url


def test_prepared_text_is_read_from_a_url(tmp_path: Path, bucket: str) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"Text number {i}. It has some words.\n" * 20)
    data = tmp_path / "data"
    assert prepare(f"corpus.inputs=[{tmp_path}/*.txt]", f"output={data}", "tokenizer.vocab_size=300") == 0
    url = upload(data, bucket)
    manifest = load_manifest(url)
    check_files(manifest)
    assert Tokenizer.load(f"{url}/tokenizer").fingerprint == Tokenizer.load(data / "tokenizer").fingerprint
    here, there = TextReader(load_manifest(data), "train"), TextReader(manifest, "train")
    assert there.read_block(0, 0)[0].tolist() == here.read_block(0, 0)[0].tolist()
    shard = f"{url}/{manifest.splits['train'].shards[0].name}"
    changed = files.read_bytes(shard)[:-1] + b"x"
    files.write_atomically(shard, changed)
    with pytest.raises(InputError, match=f"{shard} differs"):
        TextReader(manifest, "train").read_block(0, 0)
    files.remove_file(shard)
    with pytest.raises(InputError, match=f"{shard} is missing"):
        check_files(manifest)


def test_prepared_images_are_read_from_a_url(tmp_path: Path, bucket: str) -> None:
    assert prepare_images(write_digits(tmp_path / "digits", count=30), tmp_path / "data") == 0
    url = upload(tmp_path / "data", bucket)
    here, there = (ImageReader(load_manifest(root), "train") for root in (tmp_path / "data", url))
    for number in range(len(there.document_lengths(0, 0))):
        assert there.read_document(0, 0, number).data == here.read_document(0, 0, number).data


def test_only_a_local_folder_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert prepare(f"corpus.inputs=[{tmp_path}]", "output='memory://bucket/x'") == 2
    assert "only a local folder can be written" in capsys.readouterr().err


def calls_that_open(tree: ast.Module) -> Iterator[int]:
    """The lines of calls that open a file or ask for one: open(...), path.read_bytes(), ..."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            is_open = isinstance(node.func, ast.Name) and node.func.id == "open"
            is_method = isinstance(node.func, ast.Attribute) and node.func.attr in OPENERS - {"open"}
            if is_open or is_method:
                yield node.lineno


@pytest.mark.parametrize("room", DATA_SET_ROOMS)
def test_no_file_of_a_data_set_is_opened_elsewhere(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "data_pipeline" / room).glob("*.py"))
        for line in calls_that_open(ast.parse(path.read_text()))
    ]
    assert found == []


def test_characters_that_fsspec_reads_as_syntax_are_characters_of_a_local_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~", "a::b", "x*[0]", "#1?", "ü \udcff"):
        files.write_atomically(name, b"content")
        assert files.read_range(name, 1, 3) == b"ont" and files.file_size(name) == 7
        assert name in os.listdir(tmp_path)
    with pytest.raises(ValueError, match="chained URLs"):
        files.read_bytes("memory://x::file:///etc/passwd")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    path = tmp_path / "run.json"
    write_json(path, {"step": 1})
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_json(path, {"step": 2})
    assert read_json(path) == {"step": 1}


def test_json_files_are_one_object(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json_if_there(path) == {}
    with pytest.raises(InputError, match=f"model.init_from: {path} is missing: look elsewhere"):
        read_json(path, key="model.init_from", hint="look elsewhere")
    for content, message in ((b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[" * 10**5, "is not JSON")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path} {message}"):
            read_json(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        read_json(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_folders(tmp_path: Path) -> None:
    folder = files.join(tmp_path, "a", "b")
    files.make_folder(folder)
    files.write_atomically(files.join(folder, "two"), "ü")
    files.write_atomically(files.join(folder, "one"), "x")
    assert files.list_folder(folder) == ["one", "two"] and files.list_folder(tmp_path / "none") == []
    assert files.is_folder(folder) and files.exists(folder) and not files.is_file(folder)
    (tmp_path / "link").symlink_to(files.join(folder, "two"))
    assert files.file_size(tmp_path / "link") == 2
    files.remove_folder(folder)
    files.remove_folder(folder)
    assert not files.exists(folder)


def special_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(kind, path) of what is no plain file: opening some of them would wait or read without end."""
    os.mkfifo(folder / "pipe")
    yield "a named pipe", folder / "pipe"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        yield "a socket", folder / "socket"
    yield "a device", Path("/dev/zero")
    (folder / "link").symlink_to("/dev/zero")
    yield "a device", folder / "link"


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    for kind, path in special_files(tmp_path):
        for read in (files.open_file, files.read_bytes, files.sha256, files.append_file):
            with pytest.raises(
                OSError, match=f"it is {'a link' if read == files.append_file and path.is_symlink() else kind}"
            ):
                read(path)
        with pytest.raises(OSError, match=f"it is {kind}"):
            files.read_range(path, 0, 1)
        with pytest.raises(FileExistsError):
            files.create_file(path)
        assert files.file_size(path) is None
        with pytest.raises(InputError, match=f"{path} cannot be read: it is {kind}"):
            read_json_if_there(path)
    with pytest.raises(IsADirectoryError):
        files.open_file(tmp_path)


def test_a_pipe_that_takes_the_place_of_a_file_is_found_by_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.stat(__file__)
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda *_, **__: plain)
    with pytest.raises(OSError, match="a named pipe"):
        files.open_file(tmp_path / "pipe")


def test_a_link_is_read_only_where_it_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "target.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("target.json")
    assert files.read_bytes(tmp_path / "link.json") == b"{}" and read_json(tmp_path / "link.json") == {}
    for read in (partial(files.read_bytes, links=False), files.append_file):
        with pytest.raises(OSError, match="it is a link"):
            read(tmp_path / "link.json")
    with pytest.raises(InputError, match="it is a link"):
        read_json(tmp_path / "link.json", links=False)


def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".x.0123abcd.tmp").write_text("theirs")
    (outside / "file").write_text("theirs")
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "file").symlink_to(outside / "file")
    (ours / "folder").symlink_to(outside)
    (ours / "dangling").symlink_to(outside / "new")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0123abcd")
    (ours / ".x.0123abcd.tmp").symlink_to(outside / "file")  # as if the name had been guessed
    with pytest.raises(FileExistsError):
        files.write_atomically(ours / "x", "ours")
    with pytest.raises(OSError, match="a link"):
        files.append_file(ours / "dangling")
    files.remove_temporaries(ours / "folder")
    files.remove_temporaries(f"{ours}/folder/")
    files.remove_temporaries(ours)
    assert not (ours / ".x.0123abcd.tmp").is_symlink()
    files.write_atomically(ours / "file", "ours")
    files.remove_folder(ours / "folder")
    files.remove_file(ours / "dangling")
    (ours / "again").symlink_to(outside)
    files.remove_folder(ours)
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"file": "theirs", ".x.0123abcd.tmp": "theirs"}


def test_temporary_files_have_new_names_and_are_swept(tmp_path: Path) -> None:
    names = {files.temporary_name(tmp_path / ("ü" * 127)) for _ in range(2)}
    for name in names:
        files.create_file(name).close()
    files.make_folder(files.temporary_name(tmp_path / "tokenizer"))
    for kept in (".mine.tmp", ".x.01234567.tmp.json", "x.01234567.tmp"):
        (tmp_path / kept).touch()
    assert len(names) == 2 and len(os.listdir(tmp_path)) == 6
    files.remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", ".x.01234567.tmp.json", "x.01234567.tmp"]


def test_files_are_no_larger_than_asked(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 1000 bytes"):
        files.read_bytes(tmp_path / "sparse", 1000)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    assert len(files.read_bytes(tmp_path / "small", 1000)) == 1000


@pytest.mark.parametrize("name", ["x" * 10000, "a\0b", "\ud800", "a/" * 5000, "loop"], ids=ascii)
def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert files.file_size(f"{tmp_path}/{name}") is None
    assert not files.exists(f"{tmp_path}/{name}") and not files.is_folder(f"{tmp_path}/{name}")
    with pytest.raises(InputError, match=r"is missing|cannot be read"):
        read_json(f"{tmp_path}/{name}")


def test_names_inside_a_folder() -> None:
    assert files.inside("/data", "train/a b.tar") == "/data/train/a b.tar"
    for name in ("", ".", "..", "../x", "a/../x", "/x", "a//b", "a/", "./a", "a\0", "file:///x", "memory://x"):
        with pytest.raises(ValueError, match="is not the name of a file in /data"):
            files.inside("/data", name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**5, "nested"),
        (b'{"a":' * 10**5, "nested"),
        (b'{"x":' + b"[" * 150 + b"]" * 150 + b"}", "nested"),
        (b'{"x": ' + b"9" * 5000 + b"}", "larger than any number"),
        (b'{"x": 1e999}', "larger than any number"),
        (b'{"x": NaN}', "NaN is not JSON"),
        (b'{"x": -Infinity}', "-Infinity is not JSON"),
        (b'{"x": 1, "x": 2}', "'x' stands there twice"),
        (b"{" + b",".join(b'"%d":0' % (i // 2) for i in range(10**5)) + b"}", "twice"),
        (b'{"x": "\xff"}', "utf-8"),
        (b'{"x": 1', "delimiter"),
        (b"", "Expecting value"),
        (b'"\\ud800"', "JSON object"),
        (b'{"x":[' + b"[]," * 10**7 + b"[]]}", "more values"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_malformed_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path}/x.json is not .*{message}"):
        read_json(tmp_path / "x.json")


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    share: float
    note: str | None = None


def test_typed_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"parts": [{"name": "a", "sizes": [1, 2]}], "share": 1})
    assert read_typed(path, Whole) == Whole([Part("a", (1, 2))], 1.0)
    for wrong, place in (
        ({"parts": [], "share": "1"}, "share"),
        ({"parts": [], "share": True}, "share"),
        ({"share": 1}, "parts"),
        ({"parts": {}, "share": 1}, "parts"),
        ({"parts": [{"name": "a", "sizes": [1, 2.5]}], "share": 1}, r"parts\.0\.sizes\.1"),
        ({"parts": [{"name": "a", "sizes": [10**19]}, None], "share": 1}, r"parts\.1"),
        ({"parts": [], "share": 1, "note": "\ud800"}, "surrogate"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=f"{path} is broken: .*{place}"):
            read_typed(path, Whole)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
