"""Every JSON and YAML file that a command reads, in every way broken as a file: its name is told, exit code 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import EXPORT, HARMLESS, PREPARE, REFUSED, SHOW, TRAIN, Case, Place, link, pipe, replace

DAMAGE: dict[str, Callable[[Path], object]] = {
    "deep lists": lambda f: replace(f, "[" * 100_000),
    "deep objects": lambda f: replace(f, '{"a":' * 100_000 + "1" + "}" * 100_000),
    "150 lists": lambda f: replace(f, '{"a":' + "[" * 150 + "]" * 150 + "}"),
    "a huge integer": lambda f: replace(f, '{"format": ' + "9" * 5000 + "}"),
    "NaN": lambda f: replace(f, '{"format": NaN}'),
    "not UTF-8": lambda f: replace(f, b'{"format": "\xff"}'),
    "a key twice": lambda f: replace(f, '{"format": 1, "format": 1}'),
    "cut": lambda f: replace(f, f.read_bytes()[:-3]),
    "empty": lambda f: replace(f, ""),
    "NUL": lambda f: replace(f, b"\0" * 1000),
    "a list": lambda f: replace(f, "[1, 2]"),
    "null": lambda f: replace(f, "null"),
    "an empty object": lambda f: replace(f, "{}"),
    "many values": lambda f: replace(f, '{"a":[' + "[]," * 12_000_000 + "[]]}"),
    "sparse": lambda f: (f.unlink(), f.open("wb").truncate(1 << 40)),
    "a pipe": pipe,
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "a device": lambda f: link(f, "/dev/zero"),
}
EMPTY = ("an empty object",)
SURFACE = "malformed files"


def cases() -> Iterator[Case]:
    yield from _cases("manifest.json of data", TRAIN, lambda p: (p.copy("data") / "manifest.json", _with_data(p)))
    info = "tokenizer/tokenizer_info.json"
    yield from _cases("tokenizer_info.json", TRAIN, lambda p: (p.copy("data") / info, _with_data(p)))
    yield from _cases("plan.json", PREPARE, lambda p: (_again(p) / "plan.json", _prepare_again(p)))
    yield from _cases("run.json", TRAIN, lambda p: (p.copy("run") / "run.json", p.train()), codes=HARMLESS, only=EMPTY)
    yield from _cases("run.json", TRAIN, lambda p: (p.copy("run") / "run.json", p.train()), but=EMPTY)
    yield from _cases("verdict.json", TRAIN, lambda p: (p.copy("run") / "verdict.json", p.train()), codes=HARMLESS)
    yield from _cases("checkpoint manifest.json", TRAIN, _named_checkpoint)
    yield from _cases("config.yaml of an export", EXPORT, _exported, only=YAML)
    yield from _cases("config.yaml of a show", SHOW, _shown, only=YAML)
    yield from _cases("config.json", TRAIN, lambda p: (p.copy("hub") / "config.json", _started(p)), but=EMPTY)
    index = "model.safetensors.index.json"
    yield from _cases("model.safetensors.index.json", TRAIN, lambda p: (_touched(p.copy("hub") / index), _started(p)))


YAML = (
    "deep lists",
    "deep objects",
    "not UTF-8",
    "NUL",
    "a list",
    "null",
    "empty",
    "a pipe",
    "a folder",
    "a device",
    "sparse",
)


def _cases(
    file: str,
    module: str,
    where: Callable[[Place], tuple[Path, list[str]]],
    codes: tuple[int, ...] = REFUSED,
    only: tuple[str, ...] = (),
    but: tuple[str, ...] = (),
) -> Iterator[Case]:
    """where: -> (the file to damage, the arguments)."""
    for name, damage in DAMAGE.items():
        if (only and name not in only) or name in but:
            continue

        def arrange(place: Place, damage: Callable[[Path], object] = damage) -> list[str]:
            path, arguments = where(place)
            damage(path)
            return arguments

        told = file.split()[0]
        yield Case(SURFACE, f"{file}: {name}", module, arrange, told, codes, megabytes=1600)


def _with_data(place: Place) -> list[str]:
    return place.train(data=place.here / "data")


def _again(place: Place) -> Path:
    """The output of a preparation that is started again."""
    return place.copy("data").rename(place.here / "out")


def _prepare_again(place: Place) -> list[str]:
    (place.here / "in").symlink_to(place.base / "texts")
    settings = ("block_tokens=4096", "valid_fraction=0.2", "tokenizer.vocab_size=400", "num_workers=0")
    return [f"corpus.inputs=[{place.here / 'in'}]", f"output={place.here / 'out'}", *settings]


def _named_checkpoint(place: Place) -> tuple[Path, list[str]]:
    checkpoint = place.copy("run") / "checkpoints" / "step_00000002"
    checkpoint.rename(place.here / "checkpoint")
    return place.here / "checkpoint" / "manifest.json", place.train(
        f"train.resume={place.here / 'checkpoint'}", f"run_dir={place.here / 'new'}"
    )


def _exported(place: Place) -> tuple[Path, list[str]]:
    run = place.copy("run")
    return run / "config.yaml", [f"checkpoint={run}", f"output={place.here / 'exported'}"]


def _shown(place: Place) -> tuple[Path, list[str]]:
    run = place.copy("run")
    return run / "config.yaml", [f"run_dir={run}"]


def _started(place: Place) -> list[str]:
    return place.train(f"model.init_from={place.here / 'hub'}", f"run_dir={place.here / 'new'}")


def _touched(path: Path) -> Path:
    path.write_text('{"weight_map": {}}')
    return path
