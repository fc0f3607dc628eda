"""`pretrain-data corpus=pairs`: parallel files that are not parallel, and files of pairs that hold none."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import HARMLESS, PREPARE, REFUSED, Case, Place, folder, link, pipe, replace

SURFACE = "pairs of texts"
LINES = "".join(f"line {n} of the file\n" for n in range(60))
Lay = Callable[[Path], object]  # given the folder with a.en and a.de, or pairs.tsv and pairs.jsonl


def cases() -> Iterator[Case]:
    for name, lay in _parallel().items():
        yield _case(f"parallel: {name}", lay, ("corpus.source=[{0}/a.en]", "corpus.target=[{0}/a.de]"), "a.de")
    for name, lay in _harmless().items():
        keys = ("corpus.source=[{0}/a.en]", "corpus.target=[{0}/a.de]")
        yield _case(f"parallel: {name}", lay, keys, "", HARMLESS)
    for name, lay in _tables().items():
        yield _case(f"pairs.tsv: {name}", lay, ("corpus.inputs=[{0}/pairs.tsv]",), "pairs.tsv")
    for name, lay in _json_lines().items():
        yield _case(f"pairs.jsonl: {name}", lay, ("corpus.inputs=[{0}/pairs.jsonl]",), "pairs.jsonl")
    for name, keys in _keys().items():
        yield _case(name, lambda f: None, keys, "corpus.")


def _case(name: str, lay: Lay, keys: tuple[str, ...], said: str, codes: tuple[int, ...] = REFUSED) -> Case:
    def arrange(place: Place) -> list[str]:
        inside = place.here / "in"
        inside.mkdir()
        (inside / "a.en").write_text(LINES)
        (inside / "a.de").write_text(LINES.upper())
        pairs = list(zip(LINES.splitlines(), LINES.upper().splitlines(), strict=True))
        (inside / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
        (inside / "pairs.jsonl").write_text("".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in pairs))
        lay(inside)
        tokenizer = f"tokenizer.path={place.base / 'data/tokenizer/tokenizer.model'}"
        named = [key.format(inside) for key in keys]
        return ["corpus=pairs", *named, f"output={place.here / 'out'}", tokenizer, "num_workers=0"]

    return Case(SURFACE, name, PREPARE, arrange, said, codes)


def _parallel() -> dict[str, Lay]:
    def sparse(f: Path) -> None:
        os.truncate(f / "a.de", 1 << 40)

    return {
        "a line less": lambda f: replace(f / "a.de", LINES[: LINES.rindex("line")]),
        "a line more": lambda f: replace(f / "a.de", LINES + "more\n"),
        "an empty side": lambda f: replace(f / "a.de", ""),
        "a side of blank lines": lambda f: replace(f / "a.de", " \t\n" * 60),
        "not UTF-8": lambda f: replace(f / "a.de", b"\xff\xfe line\n" * 60),
        "UTF-8 that is cut": lambda f: replace(f / "a.de", "é\n".encode() * 59 + b"\xc3"),
        "surrogates": lambda f: replace(f / "a.de", b"\xed\xa0\x80 line\n" * 60),
        "a line without end": sparse,
        "missing": lambda f: (f / "a.de").unlink(),
        "a pipe": lambda f: pipe(f / "a.de"),
        "a folder": lambda f: folder(f / "a.de"),
        "a device": lambda f: link(f / "a.de", "/dev/zero"),
    }


def _harmless() -> dict[str, Lay]:
    """Nothing a pair could not hold."""
    return {
        "the same file twice": lambda f: link(f / "a.de", f / "a.en"),
        "NUL and controls": lambda f: replace(f / "a.de", "\0\x1f\x7f\n" * 60),
        "special tokens": lambda f: replace(f / "a.de", "</s> <pad> <mask> <extra_id_0>\n" * 60),
        "carriage returns": lambda f: replace(f / "a.de", "a\rb\r\n" * 60),
        "line breaks of Unicode": lambda f: replace(f / "a.de", "a\u2028b\x85c\x0bd\n" * 60),
        "a byte order mark": lambda f: replace(f / "a.de", "\ufeff" + LINES),
    }


def _tables() -> dict[str, Lay]:
    def packed(f: Path, content: bytes) -> None:
        replace(f / "pairs.tsv", gzip.compress(content))

    return {
        "no tabs": lambda f: replace(f / "pairs.tsv", LINES),
        "a line without a tab": lambda f: replace(f / "pairs.tsv", "a\tb\n" * 50 + "c\n"),
        "tabs alone": lambda f: replace(f / "pairs.tsv", "\t\n" * 60),
        "empty": lambda f: replace(f / "pairs.tsv", ""),
        "not UTF-8": lambda f: replace(f / "pairs.tsv", b"\xff\t\xff\n"),
        "gzip under another name": lambda f: packed(f, LINES.encode()),
    }


def _json_lines() -> dict[str, Lay]:
    def lines(value: object) -> Lay:
        return lambda f: replace(f / "pairs.jsonl", (json.dumps(value) + "\n") * 60)

    return {
        "no target": lines({"source": "a"}),
        "a target that is no text": lines({"source": "a", "target": 5}),
        "a target that is null": lines({"source": "a", "target": None}),
        "lists": lines(["a", "b"]),
        "a surrogate": lambda f: replace(f / "pairs.jsonl", '{"source": "a", "target": "\\ud800"}\n' * 60),
        "deep": lambda f: replace(f / "pairs.jsonl", '{"source":' * 100_000),
        "cut": lambda f: replace(f / "pairs.jsonl", '{"source": "a", "targ'),
    }


def _keys() -> dict[str, tuple[str, ...]]:
    return {
        "a source alone": ("corpus.source=[{0}/a.en]",),
        "more sources than targets": ("corpus.source=[{0}/a.en,{0}/a.de]", "corpus.target=[{0}/a.de]"),
        "sources and inputs": ("corpus.source=[{0}/a.en]", "corpus.target=[{0}/a.de]", "corpus.inputs=[{0}/pairs.tsv]"),
        "no files": (),
        "a pattern for nothing": ("corpus.source=[{0}/*.none]", "corpus.target=[{0}/a.de]"),
        "inputs of another type": ("corpus.inputs=[{0}/a.en]",),
    }
