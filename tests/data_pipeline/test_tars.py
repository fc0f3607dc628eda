"""Tars in WebDataset form that others made, as inputs: text and images, by webdataset's own writer."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.writer import TarWriter

from data_pipeline.common.errors import InputError
from data_pipeline.shards.images import ImageReader
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.sources.text import TextConfig, TextSource
from tests.helpers import prepare
from tests.images import png


def write(path: Path, *samples: Mapping[str, object]) -> Path:
    with TarWriter(str(path)) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"{number:04d}", **sample})
    return path


def source(*inputs: Path | str, **changes: Any) -> TextSource:
    return TextSource(TextConfig(kind="text", inputs=[str(i) for i in inputs], **changes))


def texts(*inputs: Path | str, **changes: Any) -> list[str]:
    return [d.text for d in source(*inputs, **changes).documents()]


def test_text_and_records(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"txt": "one\n", "json": {"text": "described"}}, {"json": {"text": "two"}})
    write(tmp_path / "b.TAR".lower(), {"jsonl": b'{"text": "three"}\n{"text": "four"}\n'}, {"npy": np.zeros(3)})
    found = source(f"{tmp_path}/*.tar")
    assert [d.text for d in found.documents()] == ["one\n", "two", "three", "four"]
    assert str(found.left_out) == "left out: 1 samples of tars without .txt, .json or .jsonl"
    nested = write(tmp_path / "c.tar", {"json": {"meta": {"body": "x" * 40}}})
    assert texts(nested, text_field="meta.body", max_document_bytes=16) == ["x" * 16, "x" * 16, "x" * 8]


def test_names_of_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./a/x.TXT", "a/._x.txt", ".hid/y.txt", "README", "a/mr.smith.txt", "__meta__/z.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("a/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = source(tmp_path / "a.tar")
    assert [d.text for d in found.documents()] == ["./a/x.TXT", "a/mr.smith.txt", "__meta__/z.txt"]
    assert str(found.left_out) == (
        "left out: 2 hidden members of tars, 1 members of tars that are links, sparse or no files, "
        "1 members of tars without a suffix"
    )


def test_text_that_is_not_utf8_names_tar_and_member(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"txt": "na\xefve, caf\xe9".encode("latin-1")})
    with pytest.raises(InputError, match=r"a\.tar: 0000\.txt: not UTF-8 at byte 2"):
        texts(path)
    assert texts(path, encoding="latin-1") == ["na\xefve, caf\xe9"]


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut in a member", "cut after a member", "header", "twice"])
def test_a_bad_tar_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.tar", {"txt": "x" * 600}, {"txt": "y" * 600})
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(b"not a tar at all" * 100)
    elif damage == "empty":
        data = bytearray()
    elif damage.startswith("cut"):
        del data[2000 if damage == "cut in a member" else 3072 :]
    elif damage == "header":
        data[1536 + 150] ^= 0xFF
    path.write_bytes(data)
    if damage == "twice":
        with tarfile.open(path, "w") as tar:
            for _ in range(2):
                tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(InputError, match=r"a\.tar"):
        texts(path)


def test_nothing_is_unpickled_and_no_shell_is_started(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"pyd": b"cos\nsystem\n(S'touch pwned'\ntR.", "pkl": b"x", "txt": "x"})
    assert texts(tmp_path / "a.tar") == ["x"]
    with pytest.raises(InputError, match="does not exist"):
        source("pipe:touch pwned; cat x.tar")


def images(root: Path) -> set[tuple[str, bytes]]:
    manifest = load_manifest(root)
    found = set()
    for split in ("train", "valid"):
        reader = ImageReader(manifest, split)
        for shard, blocks in enumerate(reader.blocks_per_shard):
            for block in range(blocks):
                for i in range(len(reader.document_lengths(shard, block))):
                    image = reader.read_document(shard, block, i)
                    found.add((manifest.classes[image.label], image.data))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_images_with_labels(tmp_path: Path, workers: int) -> None:
    pictures = [png(np.full((4, 5, 3), shade, np.uint8)) for shade in range(20)]
    labels: list[dict[str, object]] = [{"cls": 3}, {"json": {"label": "cat"}}, {"txt": " dog\n"}]
    samples = [{"png": picture, **labels[i % 3]} for i, picture in enumerate(pictures)]
    path = write(tmp_path / "a.tar", *samples, {"txt": "no image"}, {"cls": 1, "gif": b"GIF89a"})
    out = tmp_path / "out"
    code = prepare("corpus=images", f"corpus.inputs=['{path}']", f"output={out}", f"num_workers={workers}")
    assert code == 0
    assert images(out) == {(("3", "cat", "dog")[i % 3], picture) for i, picture in enumerate(pictures)}
    assert prepare("corpus=images", f"corpus.inputs=['{path}']", f"output={out}") == 0


def test_images_of_a_tar_are_named_in_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlabeled = write(tmp_path / "a.tar", {"png": b"x"}, {"png": b"x", "json": json.dumps({"x": 1}).encode()})
    arguments = ("corpus=images", f"output={tmp_path / 'out'}", "num_workers=0", "corpus.max_bad_images=0")
    assert prepare(*arguments, f"corpus.inputs=[{unlabeled}]") == 2
    said = capsys.readouterr().err
    assert "a.tar: 0000.png has no label: neither .cls" in said and "0001" in said
    broken = write(tmp_path / "b.tar", {"png": b"no image", "cls": 1}, {"jpg": b"", "cls": 2})
    assert prepare(*arguments, f"corpus.inputs=[{broken}]") == 2
    assert "b.tar: 0000.png: its content is neither JPEG nor PNG" in capsys.readouterr().err
    (tmp_path / "c.tar").write_bytes(b"x" * 5000)
    assert prepare(*arguments, f"corpus.inputs=['{tmp_path}/c*.tar']") == 2
    assert "c.tar: the tar is damaged or truncated" in capsys.readouterr().err
