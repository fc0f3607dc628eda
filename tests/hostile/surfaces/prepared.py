"""Prepared data whose shards, indexes and sums agree with one another and with nothing else."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.case import HARMLESS, TRAIN, Case, Place, link, pipe, rewrite

Change = Callable[[bytes], bytes]


def cases() -> Iterator[Case]:
    for number in range(16):
        yield _sealed(f"an index cut at {number}/16", "index", lambda data, n=number: data[: len(data) * n // 16])
        yield _sealed(f"a tar cut at {number}/16", "name", lambda data, n=number: data[: len(data) * n // 16])
    for number in range(8):
        yield _sealed(f"an index with byte {number}/8 flipped", "index", lambda data, n=number: _flipped(data, n))
        yield _sealed(f"a tar with byte {number}/8 flipped", "name", lambda data, n=number: _flipped(data, n))
    for name, change in _indexes().items():
        yield _sealed(name, "index", lambda data, change=change: _with_arrays(data, change), HARMLESS)
    for name, content in _contents().items():
        yield _sealed(name, "index", lambda data, content=content: content(data))
    for name, change in _names().items():
        yield _case(name, lambda data, change=change: rewrite(data / "manifest.json", change), "manifest.json")
    for name, lay in _files().items():
        yield _case(name, lay, "shard-000000")
    for name, table in _tables().items():
        yield _case(name, lambda data, table=table: (data / "tokenizer/similar.npz").write_bytes(table), "similar.npz")
    yield _images("images: an index cut", "index", lambda data: data[: len(data) // 2])
    yield _images("images: a tar cut", "name", lambda data: data[: len(data) // 2])
    yield _images("images: a tar of zeros", "name", lambda data: b"\0" * len(data))


def _case(name: str, lay: Callable[[Path], object], said: str, codes: tuple[int, ...] = (2,)) -> Case:
    def arrange(place: Place) -> list[str]:
        lay(place.copy("data"))
        return place.train(data=place.here / "data")

    return Case("prepared data", name, TRAIN, arrange, said, codes)


def _sealed(name: str, key: str, change: Change, codes: tuple[int, ...] = HARMLESS) -> Case:
    """A shard's tar or index changed, with its sum and size in the manifest: the sum alone protects from accidents."""
    return _case(name, lambda data: _seal(data, key, change), "train/shard-00000", codes)


def _images(name: str, key: str, change: Change) -> Case:
    def arrange(place: Place) -> list[str]:
        _seal(place.copy("images"), key, change)
        return place.train_images()

    return Case("prepared data", name, TRAIN, arrange, "train/shard-00000", HARMLESS)


def _seal(data: Path, key: str, change: Change) -> None:
    def sealed(manifest: Any) -> None:
        for shard in manifest["splits"]["train"]["shards"]:
            file = data / shard[key]
            content = change(file.read_bytes())
            file.write_bytes(content)
            shard["sha256" if key == "name" else "index_sha256"] = hashlib.sha256(content).hexdigest()
            if key == "name":
                shard["bytes"] = len(content)

    rewrite(data / "manifest.json", sealed)


def _flipped(data: bytes, eighth: int) -> bytes:
    at = len(data) * eighth // 8 + 1
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def _with_arrays(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    with np.load(io.BytesIO(data)) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    change(arrays)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _indexes() -> dict[str, Callable[[dict[str, Any]], None]]:
    """Every array of the index, each made something else."""
    changes: dict[str, Callable[[Any], Any]] = {
        "negative": lambda a: -np.abs(a) - 1,
        "huge": lambda a: np.full_like(a, np.iinfo(a.dtype).max) if a.dtype.kind in "iu" else a,
        "zero": lambda a: np.zeros_like(a),
        "floats": lambda a: a.astype(np.float64) + 0.5,
        "NaN": lambda a: np.full(a.shape, np.nan),
        "one less": lambda a: a[:-1] if a.ndim else a,
        "of more dimensions": lambda a: np.stack([a, a]),
        "texts": lambda a: a.astype(str),
        "none": lambda a: a[:0] if a.ndim else a,
    }

    def changed(number: int, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
        def apply(arrays: dict[str, Any]) -> None:
            name = sorted(n for n in arrays if arrays[n].dtype.kind in "iu")[number]
            arrays[name] = change(arrays[name])

        return apply

    return {
        f"array {number} of the index is {name}": changed(number, c)
        for number in range(3)
        for name, c in changes.items()
    }


def _contents() -> dict[str, Change]:
    def pickled(data: bytes) -> bytes:
        out = io.BytesIO()
        np.savez(out, x=np.array([{"a": 1}], dtype=object))
        return out.getvalue()

    def bomb(data: bytes) -> bytes:
        """1 GB of zeros as an array of the index, in 1 MB."""
        out = io.BytesIO()
        described = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({1 << 27},)}}".ljust(117)
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(old.namelist()[0], "w", force_zip64=True) as member:
                member.write(b"\x93NUMPY\x01\x00v\x00" + described.encode() + b"\n")
                for _ in range(64):
                    member.write(b"\0" * (16 << 20))
        return out.getvalue()

    def encrypted(data: bytes) -> bytes:
        """The flag alone: zipfile asks for a password."""
        changed = bytearray(data)
        for at in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
            changed[at] |= 1
        return bytes(changed)

    return {
        "an index with pickles": pickled,
        "an index that is a bomb": bomb,
        "an encrypted index": encrypted,
        "an index that is text": lambda data: b"text",
        "an empty index": lambda data: b"",
        "an empty zip as index": lambda data: b"PK\x05\x06" + b"\0" * 18,
    }


def _tables() -> dict[str, bytes]:
    """Of similar words, beside the tokenizer."""

    def table(**changes: list[int]) -> bytes:
        arrays = {"sizes": [1], "words": [5], "counts": [1], "similar": [6], **changes}
        out = io.BytesIO()
        np.savez(out, **{name: np.array(values, np.int64) for name, values in arrays.items()})
        return out.getvalue()

    return {
        "similar words that are text": b"text",
        "no similar words": b"",
        "similar words cut": table()[:300],
        "similar words that no manifest names": table(),
        "similar words without sizes": table(sizes=[]),
        "similar words of negative sizes": table(sizes=[-1]),
        "similar words of huge sizes": table(sizes=[2**62], counts=[4]),
        "similar words with ids that no tokenizer has": table(similar=[2**40]),
    }


def _names() -> dict[str, Callable[[Any], None]]:
    def first(**changes: object) -> Callable[[Any], None]:
        return lambda m: m["splits"]["train"]["shards"][0].update(changes)

    return {
        "a tar outside": first(name="../outside/victim"),
        "an index outside": first(index="../outside/victim"),
        "an absolute tar": first(name="/etc/passwd"),
        "a tar with NUL": first(name="a\0b"),
        "a tar of a URL": first(name="memory://x"),
        "a tar with a long name": first(name="x" * 10_000),
        "samples without bound": lambda m: m["splits"]["train"].update(samples=10**12),
        "samples of a shard without bound": first(samples=10**12),
        "a vocabulary without bound": lambda m: m["tokenizer"].update(vocab_size=2**31, total_size=2**31),
        "no shards": lambda m: m["splits"]["train"].update(shards=[]),
        "no splits": lambda m: m.update(splits={}),
        "another split": lambda m: m["splits"].update(test=m["splits"]["train"]),
    }


def _files() -> dict[str, Callable[[Path], object]]:
    tar, index = "train/shard-000000.tar", "train/shard-000000.index.npz"

    def sparse(data: Path) -> None:
        with (data / index).open("r+b") as file:
            file.truncate(20 << 30)

    return {
        "a tar that is a pipe": lambda data: pipe(data / tar),
        "an index that is a pipe": lambda data: pipe(data / index),
        "a tar that is a device": lambda data: link(data / tar, "/dev/zero"),
        "an index that is a device": lambda data: link(data / index, "/dev/zero"),
        "an index of 20 GB": sparse,
        "a tar that is missing": lambda data: (data / tar).unlink(),
        "an index that is missing": lambda data: (data / index).unlink(),
    }
