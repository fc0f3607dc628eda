"""Texts as they come: compressed, in tars, in lines without end, through patterns that match what is no file."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import HARMLESS, PREPARE, Case, Place, link, pipe

GOOD = "".join(f'{{"text": "abc def {n}. abc def ghi. abc def."}}\n' for n in range(50))


def cases() -> Iterator[Case]:
    for name, lay in {**_lines(), **_compressed(), **_tars(), **_files()}.items():

        def arrange(place: Place, lay: Callable[[Path], object] = lay) -> list[str]:
            (place.here / "in").mkdir()
            (place.here / "in" / "good.jsonl").write_text(GOOD)
            lay(place.here / "in")
            tar = place.here / "in" / "x.tar"  # those in a folder are passed over
            return place.prepare(*([f"corpus.inputs=[{tar.parent},{tar}]"] if tar.exists() else []))

        yield Case("text archives", name, PREPARE, arrange, "in/", HARMLESS, seconds=60, megabytes=1500)
    for pattern in ("in/*.txt", "in/**/*.txt", "in/*"):

        def matched(place: Place, pattern: str = pattern) -> list[str]:
            (place.here / "in").mkdir()
            for name in ("good", "better", "best"):
                (place.here / "in" / f"{name}.txt").write_text(f"{name} abc def ghi. " * 50)
            pipe(place.here / "in" / "pipe.txt")
            link(place.here / "in" / "zero.txt", "/dev/zero")
            link(place.here / "in" / "loop", place.here / "in")
            return place.prepare(f"corpus.inputs=['{place.here / pattern}']")

        yield Case("text archives", f"a pattern {pattern} of pipes and devices", PREPARE, matched, "in/", HARMLESS)
    for name in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "http://127.0.0.1:9/x.txt", "pipe:id", "s3://x/y.txt"):

        def named(place: Place, name: str = name) -> list[str]:
            return place.prepare(f"corpus.inputs=['{name}']")

        yield Case("text archives", f"the input {name}", PREPARE, named, "corpus.inputs")


def _lines() -> dict[str, Callable[[Path], object]]:
    lines: dict[str, str | bytes] = {
        "deep lists": "[" * 100_000 + "\n",
        "a deep text": '{"text": ' + "[" * 100_000 + "\n",
        "a number of 5000 digits": '{"text": "a", "n": ' + "9" * 5000 + "}\n",
        "half of a surrogate pair": '{"text": "a\\ud800b"}\n',
        "a text that is a number": '{"text": 5}\n',
        "a text that is null": '{"text": null}\n',
        "no text": '{"x": 1}\n',
        "NaN": "NaN\n",
        "not UTF-8": b'{"text": "\xff\xfe"}\n',
        "NUL": b"\0" * 100_000,
        "a line of 200 MB": b'{"text": "' + b"x" * 200_000_000 + b'"}\n',
        "empty lines": "\n" * 300_000,
    }
    return {f"jsonl: {name}": lambda f, c=content: _write(f / "x.jsonl", c) for name, content in lines.items()}


def _write(file: Path, content: str | bytes) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def _compressed() -> dict[str, Callable[[Path], object]]:
    def zeros(megabytes: int, lines: bool) -> Iterator[bytes]:
        piece = b'{"text": "' + b"x" * 990 + b'"}\n' if lines else b"\0" * 1000
        return (piece * 1000 for _ in range(megabytes))

    def zst(megabytes: int, lines: bool = False) -> Callable[[Path], object]:
        def lay(folder: Path) -> None:
            import zstandard

            with (folder / "x.jsonl.zst").open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
                for piece in zeros(megabytes, lines):
                    writer.write(piece)

        return lay

    def gz(megabytes: int) -> Callable[[Path], object]:
        def lay(folder: Path) -> None:
            with gzip.open(folder / "x.jsonl.gz", "wb", compresslevel=1) as file:
                for piece in zeros(megabytes, False):
                    file.write(piece)

        return lay

    def whole(suffix: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        def lay(folder: Path) -> None:
            import zstandard

            data = (
                gzip.compress(GOOD.encode()) if suffix == "gz" else zstandard.ZstdCompressor().compress(GOOD.encode())
            )
            (folder / f"x.jsonl.{suffix}").write_bytes(change(data))

        return lay

    found: dict[str, Callable[[Path], object]] = {
        "zst: 3 GB of zeros": zst(3000),
        "zst: 50 MB of lines": zst(50, lines=True),
        "zst: 150 MB in one line": zst(150),
        "gz: 1 GB of zeros": gz(1000),
    }
    for suffix in ("gz", "zst"):
        found |= {
            f"{suffix}: cut": whole(suffix, lambda data: data[:-5]),
            f"{suffix}: half": whole(suffix, lambda data: data[: len(data) // 2]),
            f"{suffix}: header alone": whole(suffix, lambda data: data[:6]),
            f"{suffix}: empty": whole(suffix, lambda data: b""),
            f"{suffix}: text": whole(suffix, lambda data: b'{"text": "a"}\n'),
            f"{suffix}: something behind": whole(suffix, lambda data: data + b"garbage" * 100),
            f"{suffix}: twice": whole(suffix, lambda data: data * 2),
            f"{suffix}: a flipped byte": whole(suffix, lambda data: data[:20] + bytes([data[20] ^ 255]) + data[21:]),
        }
    return found


def _tars() -> dict[str, Callable[[Path], object]]:
    def tar(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, content, changes in (("good.txt", b"abc def ghi. " * 20, {}), *members):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                for key, value in changes.items():
                    setattr(info, key, value)
                archive.addfile(info, io.BytesIO(content))
        return out.getvalue()

    def lay(content: bytes) -> Callable[[Path], object]:
        return lambda folder: (folder / "x.tar").write_bytes(content)

    def sized(size: bytes) -> bytes:
        """The first member's size field, with the checksum of the header made right."""
        data = bytearray(tar())
        data[124:136] = size.ljust(12, b"\0")
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        return bytes(data)

    good = tar(("a.txt", b"text " * 100, {}), ("b.txt", b"text " * 100, {}))
    return {
        "tar: links": lay(tar(("l.txt", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}))),
        "tar: hard links": lay(tar(("l.txt", b"", {"type": tarfile.LNKTYPE, "linkname": "../outside/victim"}))),
        "tar: pipes": lay(tar(("p.txt", b"", {"type": tarfile.FIFOTYPE}))),
        "tar: devices": lay(tar(("d.txt", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}))),
        "tar: names outside": lay(tar(("../outside/new.txt", b"abc", {}), ("/tmp/hostile.txt", b"abc", {}))),
        "tar: a member twice": lay(tar(("good.txt", b"abc", {}))),
        "tar: pickles": lay(tar(("x.pkl", b"\x80\x04cos\nsystem\n.", {}), ("x.pyd", b"x", {}), ("x.pth", b"x", {}))),
        "tar: a size beyond": lay(sized(b"77777777777")),
        "tar: a size of 2^60": lay(sized(b"\x80" + b"\0" * 3 + (2**60).to_bytes(8, "big"))),
        "tar: a negative size": lay(sized(b"\xff" * 12)),
        "tar: a size of letters": lay(sized(b"zzzzzzzzzzz")),
        "tar: not UTF-8": lay(tar(("x.txt", b"\xff\xfe\xfd" * 100, {}))),
        "tar: NUL": lay(tar(("x.txt", b"\0" * 1000, {}))),
        "tar: long names": lay(tar(("x" * 5000 + ".txt", b"abc", {}))),
        "tar: names of 2 MB": lay(tar(("x" * 2_000_000 + ".txt", b"abc", {}))),
        "tar: deep JSON": lay(tar(("x.json", b"[" * 100_000, {}))),
        **{f"tar: cut at {n}/6": lay(good[: len(good) * n // 6]) for n in range(6)},
        "tar: zeros": lay(b"\0" * 100_000),
        "tar: text": lay(b"text " * 1000),
        "tar: random headers": lay(bytes(range(256)) * 40),
        "tar: compressed": lay(gzip.compress(good)),
    }


def _files() -> dict[str, Callable[[Path], object]]:
    return {
        "a pipe": lambda f: pipe(f / "x.txt"),
        "a pipe of lines": lambda f: pipe(f / "x.jsonl"),
        "a pipe as tar": lambda f: pipe(f / "x.tar"),
        "a device": lambda f: link(f / "x.txt", "/dev/zero"),
        "a link to nothing": lambda f: link(f / "x.txt", "/nowhere"),
        "a folder by the name of a text": lambda f: (f / "x.txt").mkdir(),
        "a loop of folders": lambda f: link(f / "loop", f),
        "a text of NUL": lambda f: (f / "x.txt").write_bytes(b"\0" * 1_000_000),
        "a text that is not UTF-8": lambda f: (f / "x.txt").write_bytes(b"\xff" * 1000),
        "a text in UTF-16": lambda f: (f / "x.txt").write_bytes("abc".encode("utf-16")),
        "a text of one line": lambda f: (f / "x.txt").write_bytes(b"a" * 60_000_000),
        "parquet that is none": lambda f: (f / "x.parquet").write_bytes(b"PAR1" + b"\xff" * 1000 + b"PAR1"),
    }
