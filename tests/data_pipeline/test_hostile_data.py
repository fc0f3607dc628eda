"""Prepared data that somebody else made: whatever stands in manifest, index and tar, it is read or refused by name.

The sums are made to fit in all of these, so that what is tried is the look at the form.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import resource
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.image_codec import EncodedImage, decode_rgb
from data_pipeline.shards.images import ImageReader
from data_pipeline.shards.manifest import check_files, load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.sources.digits import write_digits
from tests.helpers import TINY, prepare, pretrain_process

SECONDS, MEGABYTES = 10.0, 300  # of the processor, of any single one; most take milliseconds
TAR, INDEX = "train/shard-000000.tar", "train/shard-000000.index.npz"


def read_everything(root: Path) -> None:
    """What a run reads: the manifest, the files' sizes, every index, every document."""
    manifest = load_manifest(root)
    check_files(manifest)
    for split in manifest.splits:
        reader: Any = (TextReader if manifest.tokenizer else ImageReader)(manifest, split)
        for shard, blocks in enumerate(reader.blocks_per_shard):
            reader.check_shard(shard)
            for block in range(blocks):
                reader.sentence_starts(shard, block)
                for document in range(len(reader.document_lengths(shard, block))):
                    read = reader.read_document(shard, block, document)
                    if isinstance(read, EncodedImage):
                        decode_rgb(read)


def refusal(root: Path) -> str | None:
    """The message with which it is refused; None where it is read."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_everything(root)
        message = None
    except InputError as error:
        message = str(error)
        assert str(root) in message
    assert time.process_time() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10
    return message


@pytest.fixture(scope="module", params=["text", "images"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    common = (f"output={folder / 'out'}", "valid_fraction=0.1", "min_shards=1", f"corpus.inputs=[{folder / 'in'}]")
    if request.param == "images":
        write_digits(folder / "in", count=30)
        assert prepare("corpus=images", *common) == 0
    else:
        (folder / "in").mkdir()
        for i in range(12):
            text = " ".join(f"Word {i * j % 37} of text {i}." for j in range(40))
            (folder / "in" / f"{i:02d}.txt").write_text(text)
        assert prepare("tokenizer.vocab_size=300", "block_tokens=800", "num_workers=0", *common) == 0
    read_everything(folder / "out")
    return folder / "out"


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "data")
    return tmp_path / "data"


def seal(root: Path, **changes: int) -> None:
    """The manifest's sums and sizes as the files are, and these numbers of the first training shard."""
    values = json.loads((root / "manifest.json").read_text())
    split = values["splits"]["train"]
    shard = split["shards"][0]
    tar, index = root / TAR, root / INDEX
    shard.update(
        bytes=tar.stat().st_size,
        sha256=hashlib.sha256(tar.read_bytes()).hexdigest(),
        index_sha256=hashlib.sha256(index.read_bytes()).hexdigest() if index.stat().st_size < 1 << 30 else "0" * 64,
        **changes,
    )
    for key in ("samples", "documents", "tokens"):
        split[key] = sum(s[key] for s in split["shards"])
    (root / "manifest.json").write_text(json.dumps(values))


def cuts(size: int, count: int) -> list[int]:
    return sorted({size * i // count for i in range(count)})


@pytest.mark.parametrize("name", [INDEX, TAR])
def test_a_file_that_is_cut_short_is_refused(root: Path, name: str) -> None:
    whole = (root / name).read_bytes()
    for cut in cuts(len(whole), 60):
        (root / name).write_bytes(whole[:cut])
        seal(root)
        assert refusal(root) is not None, cut


@pytest.mark.parametrize("name", [INDEX, TAR])
@pytest.mark.parametrize("seed", range(2))
def test_changed_bytes_are_read_as_something_or_refused(root: Path, name: str, seed: int) -> None:
    whole, rng = (root / name).read_bytes(), np.random.default_rng(seed)
    ends = []
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        (root / name).write_bytes(data)
        seal(root)
        ends.append(refusal(root))
    assert sum(end is not None for end in ends) > (100 if name == INDEX else 5)


BAD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 10**12, 2**62, 2**63, 10**30, 1.5, 1e308, "1", "", "x" * 10**5, "\ud800", [], {}, [[]]),
    *("../x.tar", "/abs.tar", "train/../x.tar", "train/./x.tar", "train//x.tar", "train/\0.tar", "train/\n.tar", "~"),
    *("file:///etc/passwd", "memory://x::y", "train/.hidden.tar", "valid/shard-000000.tar", "pipe:ls", "0" * 64),
)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to everything in the manifest, but for shards beyond the first of a split."""
    yield path
    pairs = values.items() if isinstance(values, dict) else enumerate(values[:1]) if isinstance(values, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


def test_a_manifest_with_any_other_value_is_read_or_refused(root: Path) -> None:
    file, ends = root / "manifest.json", []
    original = json.loads(file.read_text())
    for number, path in enumerate(places(original)):
        for bad in BAD_VALUES[number % 3 :: 3]:
            values = {"": copy.deepcopy(original)}
            parent: Any = values
            for key in ("", *path)[:-1]:
                parent = parent[key]
            before = parent[("", *path)[-1]]
            parent[("", *path)[-1]] = bad
            file.write_text(json.dumps(values[""]))
            if (type(before), before) != (type(bad), bad):
                ends.append((path, bad, refusal(root)))
    read = [(path, bad) for path, bad, end in ends if end is None]
    # what decides nothing of what is read; and, where it fits, a larger vocabulary, or a kind that nobody knows
    assert {path[0] for path, _ in read} <= {"seed", "valid_fraction", "classes", "kind", "tokenizer"}, read
    assert len(ends) > 200


def test_a_manifest_without_any_of_its_keys_is_refused(root: Path) -> None:
    file = root / "manifest.json"
    original = json.loads(file.read_text())
    for path in [p for p in places(original) if p and p != ("classes",)]:
        values = copy.deepcopy(original)
        parent: Any = values
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        file.write_text(json.dumps(values))
        assert refusal(root) is not None or path[0] == "classes", path


@pytest.mark.parametrize("content", [b"", b"[" * 10**5, b"\xff", b"null", b'{"a":' * 5000, b"1" * 10**5, b"{}" * 2])
def test_a_manifest_that_is_no_manifest_is_refused(root: Path, content: bytes) -> None:
    (root / "manifest.json").write_bytes(content)
    assert refusal(root) is not None


def changed_arrays(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, array in arrays.items():
        others: dict[str, Any] = {
            "negative": array - 10**6 if array.dtype.kind == "i" else None,
            "beyond": array + 10**6 if array.dtype.kind == "i" else None,
            "largest": np.full_like(array, np.iinfo(array.dtype).max) if array.dtype.kind == "i" else None,
            "smallest": np.full_like(array, np.iinfo(array.dtype).min) if array.dtype.kind == "i" else None,
            "zero": np.zeros_like(array) if array.dtype.kind == "i" else None,
            "backwards": array[::-1].copy() if name.endswith("offset") else None,
            "one less": array[:-1],
            "one more": np.append(array, array[-1:]),
            "empty": array[:0],
            "floats": array.astype(np.float64) if array.dtype.kind == "i" else None,
            "not a number": np.full(len(array), np.nan),
            "unsigned": array.astype(np.uint64) if array.dtype.kind == "i" else None,
            "big-endian": array.astype(array.dtype.newbyteorder(">")),
            "two dimensions": array[None],
            "no dimension": np.array(3),
            "unprintable": np.full(len(array), "\x1b[2J") if array.dtype.kind == "U" else None,
            "no characters": np.full((len(array), 4), 0x110000, np.uint32).view("<U4")[:, 0]
            if name == "names"
            else None,
        }
        for how, other in others.items():
            if other is not None:
                yield f"{name} {how}", {**arrays, name: other}
        yield f"{name} missing", {n: a for n, a in arrays.items() if n != name}
        yield f"{name} and more", {**arrays, "other": array}


def test_an_index_that_does_not_fit_is_refused(root: Path) -> None:
    with np.load(root / INDEX) as found:
        arrays = {name: found[name] for name in found.files}
    tried = 0
    for how, others in changed_arrays(arrays):
        with open(root / INDEX, "wb") as file:
            np.savez(file, **others)
        seal(root)
        assert refusal(root) is not None or how == "labels zero", how  # other data, not broken data
        tried += 1
    assert tried >= 60
    with open(root / INDEX, "wb") as file:
        np.savez_compressed(file, **arrays)
    seal(root)
    assert "is compressed" in str(refusal(root))


def test_nothing_large_is_read_because_an_index_is_large_or_says_so(root: Path) -> None:
    index = root / INDEX
    small = index.read_bytes()
    with np.load(index) as found:
        names = found.files
    with zipfile.ZipFile(index, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in names:
            with bomb.open(f"{name}.npy", "w", force_zip64=True) as file:
                for _ in range(20):
                    file.write(bytes(1 << 22))
    seal(root)
    assert refusal(root) is not None
    with open(index, "wb") as sparse:
        sparse.truncate(20 << 30)
    seal(root)
    assert "is larger than" in str(refusal(root))
    index.write_bytes(small)
    for key in ("samples", "documents", "tokens"):
        seal(root, **{key: 10**12})
        assert refusal(root) is not None


def test_object_arrays_are_not_unpickled(root: Path, tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    data = io.BytesIO()
    np.lib.format.write_array(data, np.array([Run()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(root / INDEX, "w") as archive:
        archive.writestr("documents.npy", data.getvalue())
    seal(root)
    assert refusal(root) is not None and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "link out", "link in"])
@pytest.mark.parametrize("name", [TAR, INDEX, "manifest.json"])
def test_what_is_no_file_of_the_folder_is_refused(
    root: Path, tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / name
    shutil.move(path, tmp_path / "outside")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # a socket's path may have some 100 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link out":
        path.symlink_to(tmp_path / "outside")
    else:
        shutil.move(tmp_path / "outside", path.with_name("other"))
        path.symlink_to("other")
    may_be_read = kind == "link in" or (kind == "link out" and name == "manifest.json")
    assert (refusal(root) is None) == may_be_read


def token_blocks(root: Path) -> tuple[np.ndarray, bytearray]:
    with np.load(root / INDEX) as index:
        return index["tokens_offset"], bytearray((root / TAR).read_bytes())


@pytest.mark.parametrize("value", [65535, 500, 60000])
def test_ids_beyond_the_vocabulary_are_refused_by_name(root: Path, value: int) -> None:
    if not (root / "tokenizer").exists():
        pytest.skip("images have no ids")
    offsets, data = token_blocks(root)
    data[offsets[1] + 128 : offsets[1] + 130] = int(value).to_bytes(2, "little")
    (root / TAR).write_bytes(data)
    seal(root)
    assert f"shard-000000.tar, block 1, is not as the index and the tokenizer say: the id {value}" in str(refusal(root))


def test_a_run_on_such_data_ends_with_2_and_names_the_file(root: Path, tmp_path: Path) -> None:
    if not (root / "tokenizer").exists():
        pytest.skip("one kind is enough")
    with np.load(root / INDEX) as index:
        offsets = index["tokens_offset"]
    data = bytearray((root / TAR).read_bytes())
    for offset in offsets:
        data[offset + 128 : offset + 130] = (60000).to_bytes(2, "little")
    (root / TAR).write_bytes(data)
    seal(root)
    ended = pretrain_process(
        *(*TINY, "model.max_seq_len=16", "objective=causal_lm", f"data.path={root}", f"run_dir={tmp_path / 'run'}"),
        *("train.steps=50", "train.seed=1", "data.num_workers=1"),
    )
    assert ended.returncode == 2, ended.stderr
    assert f"{root}/{TAR}, block" in ended.stderr and "the id 60000" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, start: np.where(s == start, start + 1, s), "a document does not begin a sentence"),
        (lambda s, start: np.where(s == 0, -1, s), "do not follow each other"),
        (lambda s, start: s[::-1], "do not follow each other"),
        (lambda s, start: np.append(s[:-1], 10**6), "do not follow each other"),
    ],
)
def test_sentences_that_are_not_those_of_the_documents_are_refused(root: Path, change: Any, message: str) -> None:
    if not (root / "tokenizer").exists():
        pytest.skip("images have no sentences")
    with np.load(root / INDEX) as index:
        block = int(np.argmax(index["documents"] > 1))
        offset, size = index["sentences_offset"][block], index["sentences_bytes"][block]
        start = index["lengths"][index["documents"][:block].sum()]  # of the block's second document
    data = bytearray((root / TAR).read_bytes())
    sentences = np.frombuffer(bytes(data[offset + 128 : offset + size]), np.int64)
    assert start in sentences and start + 1 not in sentences
    data[offset + 128 : offset + size] = change(sentences, start).astype(np.int64).tobytes()
    (root / TAR).write_bytes(data)
    seal(root)
    assert message in str(refusal(root))
