"""tokenizer.path: SentencePiece models and tokenizer.json files that somebody else made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import HARMLESS, PREPARE, Case, Place, link, pipe

Values = dict[str, Any]
PIECES = ["<unk>", "a", "b", "c", "d", "e", " ", "ab"]


def cases() -> Iterator[Case]:
    for number in range(12):
        yield _model(f"a SentencePiece model cut at {number}/12", lambda data, n=number: data[: len(data) * n // 12])
    for number in range(12):
        yield _model(f"a SentencePiece model with byte {number}/12 flipped", lambda data, n=number: _flipped(data, n))
    for name, content in (
        ("zeros", b"\0" * 5000),
        ("ones", b"\xff" * 5000),
        ("text", b"text"),
        ("a pickle", b"\x80\x04."),
    ):
        yield _model(f"a SentencePiece model of {name}", lambda data, content=content: content, codes=(2,))
    for name, values in _json().items():
        yield _path(f"tokenizer.json: {name}", "tokenizer.json", lambda file, v=values: file.write_text(json.dumps(v)))
    for name, text in (("deep lists", "[" * 100_000), ("cut", '{"model": '), ("not UTF-8", "\udcff"), ("null", "null")):
        content = text.encode("utf-8", "surrogateescape")
        yield _path(f"tokenizer.json: {name}", "tokenizer.json", lambda file, c=content: file.write_bytes(c), (2,))
    for name in ("tokenizer.json", "tokenizer.model"):
        yield _path(f"{name} is a pipe", name, pipe, (2,))
        yield _path(f"{name} is a device", name, lambda file: link(file, "/dev/zero"), (2,))
        yield _path(f"{name} is a folder", name, Path.mkdir, HARMLESS)
        yield _path(f"{name} is missing", name, lambda file: None, (2,))
        yield _path(f"{name} is sparse", name, lambda file: file.open("wb").truncate(1 << 40), (2,))


def _flipped(data: bytes, twelfth: int) -> bytes:
    at = len(data) * twelfth // 12
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def _path(name: str, file: str, lay: Callable[[Path], object], codes: tuple[int, ...] = HARMLESS) -> Case:
    def arrange(place: Place) -> list[str]:
        (place.here / "in").mkdir()
        for name in ("a", "b", "c"):
            (place.here / "in" / f"{name}.txt").write_text(f"{name} abcde ab abc\n" * 400 + "a" * 20_000)
        lay(place.here / file)
        return place.prepare(f"tokenizer.path={place.here / file}")

    return Case("tokenizers", name, PREPARE, arrange, file, codes, seconds=60)


def _model(name: str, change: Callable[[bytes], bytes], codes: tuple[int, ...] = HARMLESS) -> Case:
    def arrange(place: Place) -> list[str]:
        (place.here / "in").symlink_to(place.base / "texts")
        whole = (place.base / "data" / "tokenizer" / "tokenizer.model").read_bytes()
        (place.here / "tokenizer.model").write_bytes(change(whole))
        return place.prepare(f"tokenizer.path={place.here / 'tokenizer.model'}")

    return Case("tokenizers", name, PREPARE, arrange, "tokenizer.model", codes)


def _whole(**changes: Any) -> Values:
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(PIECES)}, "merges": [["a", "b"]], "unk_token": "<unk>"}
    values: Values = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    values.update({k: v for k, v in changes.items() if k != "model"})
    model.update(changes.get("model", {}))
    return values


def _json() -> dict[str, Values]:
    special = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 10_000_000}
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    split = {
        "type": "Split",
        "pattern": {"Regex": "(([a-z ])+.)+[A-Z]([a-z])+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}
    pieces = {**words, "type": "WordPiece", "continuing_subword_prefix": "#"}
    longer = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    return {
        "dropout": _whole(model={"dropout": 0.5}),
        "no dropout": _whole(model={"dropout": 0.0}),
        "an id without bound": _whole(model={"vocab": {p: i for i, p in enumerate(PIECES[:-1])} | {"ab": 2**32 - 1}}),
        "an id of a million": _whole(model={"vocab": {p: i for i, p in enumerate(PIECES[:-1])} | {"ab": 10**6}}),
        "an added id without bound": _whole(added_tokens=[{"id": 2**32 - 1, "content": "<x>", **special}]),
        "one id twice": _whole(model={"vocab": {"a": 0, "b": 0, "ab": 1}}),
        "no vocabulary": _whole(model={"vocab": {}, "merges": []}),
        "no unknown token": _whole(model={"vocab": {"a": 0, "b": 1, "ab": 2}, "unk_token": None}),
        "an unknown token that is none": _whole(model={"unk_token": "<none>"}),
        "merges of nothing": _whole(model={"merges": [["x", "y"]]}),
        "a million merges": _whole(model={"merges": [["a", "b"]] * 100_000}),
        "words without unknown": _whole() | {"model": words},
        "word pieces without unknown": _whole() | {"model": pieces},
        "a regular expression without end": _whole(pre_tokenizer=split),
        "a regular expression that is none": _whole(pre_tokenizer={**split, "pattern": {"Regex": "("}}),
        "a letter becomes ten million": _whole(normalizer=replace),
        "thirty doublings": _whole(normalizer={"type": "Sequence", "normalizers": [double] * 30}),
        "a precompiled map of garbage": _whole(
            normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA////" * 40}
        ),
        "a precompiled map without bound": _whole(
            normalizer={"type": "Precompiled", "precompiled_charsmap": "//////////8="}
        ),
        "nested sequences": _whole(normalizer=_nested(300)),
        "text of the special tokens": _whole(added_tokens=[{"id": 8, "content": "a", **special}]),
        "an empty special token": _whole(added_tokens=[{"id": 8, "content": "", **special}]),
        "a model of another type": _whole() | {"model": {"type": "Evil"}},
        "truncation": _whole(
            truncation={"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        ),
        "padding": _whole(padding={**longer, "pad_type_id": 0, "pad_token": "a"}),
        "unigram without scores": _whole() | {"model": {"type": "Unigram", "vocab": [], "unk_id": 0}},
        "unigram with NaN": _whole() | {"model": {"type": "Unigram", "vocab": [["a", "x"]], "unk_id": 0}},
        "an unknown id beyond": _whole() | {"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 50}},
    }


def _nested(depth: int) -> Values:
    values: Values = {"type": "Lowercase"}
    for _ in range(depth):
        values = {"type": "Sequence", "normalizers": [values]}
    return values
