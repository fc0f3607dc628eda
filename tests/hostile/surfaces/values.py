"""JSON files that are well formed, with a value of another kind or size at each of their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import HARMLESS, TRAIN, Case, Place, rewrite

OTHERS: tuple[object, ...] = (None, "x", -1, 10**15, 2.5, True, [], {}, ["x"], {"x": 1}, "../x", "\ud800", 10**19)
Keys = tuple[str | int, ...]

DATA_KEYS: tuple[Keys, ...] = (
    *(("format",), ("kind",), ("tokenizer",), ("seed",), ("valid_fraction",), ("splits",), ("classes",)),
    *(("tokenizer", "fingerprint"), ("tokenizer", "vocab_size"), ("tokenizer", "total_size")),
    *(("splits", "train"), ("splits", "train", "samples"), ("splits", "train", "documents")),
    *(("splits", "train", "tokens"), ("splits", "train", "shards"), ("splits", "train", "shards", 0)),
    *(("splits", "train", "shards", 0, key) for key in ("name", "samples", "documents", "tokens", "bytes", "sha256")),
    *(("splits", "train", "shards", 0, key) for key in ("index", "index_sha256")),
)
TOKENIZER_KEYS: tuple[Keys, ...] = (("kind",), ("sha256",), ("ids",), ("format",))
RUN_KEYS: tuple[Keys, ...] = (("identity",), ("steps",), ("resumed",), ("identity", "data.content"), ("identity", "x"))
STATE, TENSOR = "state", ("tensors", "weights.token_embedding.weight")
CHECKPOINT_KEYS: tuple[Keys, ...] = (
    *(("format",), (STATE,), ("files",), ("tensors",), (STATE, "step"), (STATE, "tokens"), (STATE, "evaluated_step")),
    *((STATE, "position"), (STATE, "identity"), TENSOR),
    *((*TENSOR, key) for key in ("shape", "boxes")),
    *((*TENSOR, "boxes", 0, key) for key in ("offset", "size", "file", "key", "crc32")),
)
HUB_KEYS: tuple[Keys, ...] = (
    ("n_embd",),
    ("n_layer",),
    ("n_head",),
    ("vocab_size",),
    ("n_positions",),
    ("model_type",),
)


def cases() -> Iterator[Case]:
    yield from _cases("manifest.json", DATA_KEYS, lambda p: (p.copy("data") / "manifest.json", _with_data(p)), 3)
    info = "tokenizer/tokenizer_info.json"
    yield from _cases("tokenizer_info.json", TOKENIZER_KEYS, lambda p: (p.copy("data") / info, _with_data(p)), 3)
    yield from _cases("run", RUN_KEYS, lambda p: (p.copy("run") / "run.json", p.train()), 3)
    yield from _cases("step_00000002", CHECKPOINT_KEYS, _checkpoint, 3)
    yield from _cases("init_from", HUB_KEYS, _hub, 3)


def _with_data(place: Place) -> list[str]:
    return place.train(data=place.here / "data")


def _checkpoint(place: Place) -> tuple[Path, list[str]]:
    folder = place.copy("run") / "checkpoints" / "step_00000002"
    folder.rename(place.here / "step_00000002")
    resume = f"train.resume={place.here / 'step_00000002'}"
    return place.here / "step_00000002" / "manifest.json", place.train(resume, f"run_dir={place.here / 'new'}")


def _hub(place: Place) -> tuple[Path, list[str]]:
    start = f"model.init_from={place.here / 'hub'}"
    return place.copy("hub") / "config.json", place.train(start, f"run_dir={place.here / 'new'}")


def _cases(
    file: str, keys: tuple[Keys, ...], where: Callable[[Place], tuple[Path, list[str]]], each: int
) -> Iterator[Case]:
    """Of the other values `each` for each key, in turn."""
    for number, path in enumerate(keys):
        for turn in range(each):
            value = OTHERS[(number * each + turn) % len(OTHERS)]

            def arrange(place: Place, path: Keys = path, value: object = value) -> list[str]:
                changed, arguments = where(place)
                rewrite(changed, lambda values: put(values, path, value))
                return arguments

            name = f"{file}: {'.'.join(map(str, path))} is {value!a}"
            # What is never read, or read as it stands, may be what it likes.
            yield Case("values of another kind", name, TRAIN, arrange, file, HARMLESS)


def put(values: Any, path: Keys, value: object) -> None:
    *sections, last = path
    for section in sections:
        values = values[section]
    values[last] = value
