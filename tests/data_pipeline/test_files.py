"""The one door to storage: what goes through it, and that nothing goes past it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_pipeline.common import files
from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json, read_json_if_there, write_json
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
    assert [place for place in found if "continuation.py" not in place] == []
    assert len(found) == (1 if room == "shards" else 0)  # the lock, which must be a descriptor of the system


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
