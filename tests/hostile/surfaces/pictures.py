"""Pictures of every form, broken and bombs, and the names and labels that come with them."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile.case import HARMLESS, PREPARE, Case, Place, link, pipe

MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK")}
OTHERS = ("GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "PCX", "TGA")


def cases() -> Iterator[Case]:
    for kind, modes in MODES.items():
        for mode in modes:
            yield _picture(f"{kind} of mode {mode}", lambda k=kind, m=mode: _encoded(k, m), kind, (0,))
        for sixth in range(1, 6):
            yield _picture(f"{kind} cut at {sixth}/6", lambda k=kind, n=sixth: _cut(_encoded(k), n), kind)
            yield _picture(f"{kind} with byte {sixth}/6 flipped", lambda k=kind, n=sixth: _flip(_encoded(k), n), kind)
    for kind in OTHERS:
        yield _picture(f"{kind} by the name of a PNG", lambda k=kind: _encoded(k), "PNG")
    for name, made in _strange().items():
        yield _picture(name, made, "JPEG" if "JPEG" in name or "photo" in name else "PNG")
    for name, lay in _folders().items():
        yield _folder(name, lay)
    for name, text in _lists().items():
        yield _list(name, text)


def _picture(name: str, made: Callable[[], bytes], kind: str, codes: tuple[int, ...] = HARMLESS) -> Case:
    """One of many."""
    suffix = "jpg" if kind == "JPEG" else "png"
    return _folder(name, lambda folder: (folder / "0" / f"strange.{suffix}").write_bytes(made()), codes)


def _folder(name: str, lay: Callable[[Path], object], codes: tuple[int, ...] = HARMLESS) -> Case:
    def arrange(place: Place) -> list[str]:
        place.copy("digits").rename(place.here / "in")
        lay(place.here / "in")
        return place.prepare_images()

    return Case("pictures", name, PREPARE, arrange, "in", codes)


def _encoded(kind: str, mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    image = Image.fromarray(pixels)
    image.convert("I" if mode == "I;16" else mode).convert(mode).save(data, kind)
    return data.getvalue()


def _cut(data: bytes, sixth: int) -> bytes:
    return data[: len(data) * sixth // 6]


def _flip(data: bytes, sixth: int) -> bytes:
    at = len(data) * sixth // 6
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    )


def _strange() -> dict[str, Callable[[], bytes]]:
    def frames() -> bytes:
        data, image = io.BytesIO(), Image.new("RGB", (16, 16), "red")
        image.save(data, "MPO", save_all=True, append_images=[image])
        return data.getvalue()

    def saved(kind: str, **options: object) -> Callable[[], bytes]:
        def made() -> bytes:
            data = io.BytesIO()
            Image.new("RGB", (16, 16), "red").save(data, kind, **options)
            return data.getvalue()

        return made

    def texts() -> bytes:
        data, info = io.BytesIO(), PngImagePlugin.PngInfo()
        info.add_text("x", "y" * 60_000_000, zip=True)
        Image.new("RGB", (8, 8)).save(data, "PNG", pnginfo=info)
        return data.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 99
    return {
        "a photo of two frames": frames,
        "a photo turned by an unknown way": saved("JPEG", exif=exif),
        "JPEG with EXIF of garbage": saved("JPEG", exif=b"Exif\0\0" + b"\xff" * 1000),
        "JPEG with a profile of garbage": saved("JPEG", icc_profile=b"\xff" * 5000),
        "JPEG, progressive": saved("JPEG", progressive=True),
        "a bomb of a million rows": lambda: _png(1_000_000, 1_000_000, pixels=b"\0" * 1000),
        "a bomb of 20,000 rows": lambda: _png(20_000, 20_000, pixels=b"\0" * (20_000 * 3 + 1) * 1000),
        "no width": lambda: _png(0, 8),
        "no pixels": lambda: _png(8, 8),
        "too many pixels": lambda: _png(8, 8, pixels=b"\0" * 50_000_000),
        "a text of 60 MB": texts,
        "a profile of garbage": lambda: _png(8, 8, _chunk(b"iCCP", b"x\0\0garbage"), pixels=b"\0" * 200),
        "a chunk without bound": lambda: _png(8, 8)[:33] + b"\xff\xff\xff\xffIDAT",
        "an animation": lambda: _png(8, 8, _chunk(b"acTL", struct.pack(">II", 2**31, 0)), pixels=b"\0" * 200),
        "half a header": lambda: _png(8, 8)[:20],
        "nothing": lambda: b"",
        "text": lambda: b"#!/bin/sh\ntouch outside/hacked\n",
        "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(outside/x) (w) file\n",
        "a drawing": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    }


def _folders() -> dict[str, Callable[[Path], object]]:
    return {
        "a pipe in a class": lambda folder: pipe(folder / "0" / "x.png"),
        "a device in a class": lambda folder: link(folder / "0" / "x.png", "/dev/zero"),
        "a link to nothing in a class": lambda folder: link(folder / "0" / "x.png", "/nowhere"),
        "a folder by the name of a picture": lambda folder: (folder / "0" / "x.png").mkdir(),
        "a class that leads to itself": lambda folder: link(folder / "loop", folder),
        "a class that is not UTF-8": lambda folder: (folder / "0").rename(folder / os.fsdecode(b"caf\xe9")),
        "a picture that is not UTF-8": lambda folder: (folder / "0" / os.fsdecode(b"\xe9.png")).write_bytes(b"x"),
        "a class of 200 letters": lambda folder: (folder / "0").rename(folder / ("x" * 200)),
        "a class with a line break": lambda folder: (folder / "0").rename(folder / "a\nb"),
        "a class of digits": lambda folder: (folder / "0").rename(folder / ("9" * 200)),
        "a class of other digits": lambda folder: (folder / "0").rename(folder / "\u0663\u00b2"),
    }


def _lists() -> dict[str, str]:
    good = "{here}/digits/0/0000.png"
    line = json.dumps({"file": good, "label": "1"})
    return {
        "list.jsonl: deep lists": line + "\n" + "[" * 100_000,
        "list.jsonl: a deep label": line + "\n" + '{"file": "x.png", "label": ' + "[" * 50_000,
        "list.jsonl: a label of 5000 digits": json.dumps({"file": good, "label": "9" * 5000}),
        "list.jsonl: a number of 5000 digits": '{"file": "' + good + '", "label": ' + "9" * 5000 + "}",
        "list.jsonl: half of a surrogate pair": line + '\n{"file": "{here}/digits/1/0001.png", "label": "\\ud800"}',
        "list.jsonl: a file with NUL": '{"file": "a\\u0000b", "label": "1"}',
        "list.jsonl: a file of a URL": '{"file": "http://127.0.0.1:9/x.png", "label": "1"}',
        "list.jsonl: a device": '{"file": "/dev/zero", "label": "1"}',
        "list.jsonl: a file of a number": '{"file": 5, "label": "1"}',
        "list.jsonl: numbers": "1\n2\n3\n",
        "list.jsonl: one line": "x" * 100_000_000,
        "list.csv: a field without end": 'file,label\n"' + "x" * 20_000_000,
        "list.csv: many columns": "file,label\n" + "," * 1_000_000,
        "list.csv: no header": good + ",1\n",
        "list.csv: NUL": "file,label\n\0\0,1\n",
        "list.tsv: a label of 5000 digits": f"file\tlabel\n{good}\t{'9' * 5000}\n",
        "list.tsv: outside": "file\tlabel\n../../../../etc/passwd\t1\n",
    }


def _list(name: str, text: str) -> Case:
    file = name.split(":")[0]

    def arrange(place: Place) -> list[str]:
        place.copy("digits")
        (place.here / file).write_text(text.replace("{here}", str(place.here)))
        return place.prepare_images(f"corpus.inputs=[{place.here / file}]")

    return Case("pictures", name, PREPARE, arrange, file.split(".")[0], HARMLESS, megabytes=1300)
