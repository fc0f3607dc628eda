"""`data=mixture`: sources and shares that make none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.helpers import command
from tests.hostile.case import HARMLESS, PREPARE, REFUSED, TINY, TRAIN, Case, Place, pipe, replace, rewrite

SURFACE = "mixtures"
Sources = Callable[[Place], str]  # what data.sources is


def cases() -> Iterator[Case]:
    for share in ("0", "-1", "nan", "inf", "1e-300", "1e308", "x", "null", "[1]", "{c: 1}", "true"):
        yield _case(f"a share of {share}", _both, "data.shares", (f"data.shares={{a: 1, b: {share}}}",))
    for name, shares in {
        "of another name": "{a: 1, c: 1}",
        "of one": "{a: 1}",
        "none": "{}",
        "a list": "[1, 1]",
    }.items():
        yield _case(f"shares: {name}", _both, "data.shares", (f"data.shares={shares}",))
    for smoothing in ("-1", "nan", "inf", "x", "1e9"):
        yield _case(f"a smoothing of {smoothing}", _both, "data.smoothing", (f"data.smoothing={smoothing}",))
    for name, sources in _named().items():
        yield _case(name, sources, "data.sources")
    for name, (sources, said) in _folders().items():
        yield _case(name, sources, said)
    yield _case("one source", lambda p: f"{{a: {p.base}/data}}", "", codes=HARMLESS)
    yield _case("a source twice", lambda p: f"{{a: {p.base}/data, b: {p.base}/data}}", "", codes=HARMLESS)


def _case(name: str, sources: Sources, said: str, more: tuple[str, ...] = (), codes: tuple[int, ...] = REFUSED) -> Case:
    def arrange(place: Place) -> list[str]:
        run = ("data=mixture", f"data.sources={sources(place)}", f"run_dir={place.here / 'new'}", "train.steps=2")
        return [*TINY, *run, *more]

    return Case(SURFACE, name, TRAIN, arrange, said, codes)


def _both(place: Place) -> str:
    return f"{{a: {place.base}/data, b: {place.base}/data}}"


def _with(place: Place, other: object) -> str:
    return f"{{a: {place.base}/data, b: '{other}'}}"


def _folders() -> dict[str, tuple[Sources, str]]:
    """Of the second source, and what is told."""

    def of_bytes(place: Place) -> str:
        inputs = (f"corpus.inputs=[{place.base}/texts]", "tokenizer.model_type=byte", "valid_fraction=0.2")
        assert command(PREPARE, *inputs, f"output={place.here}/bytes", "num_workers=0") == 0
        return _with(place, place.here / "bytes")

    def without(split: str) -> Sources:
        def lay(place: Place) -> str:
            manifest = place.copy("data") / "manifest.json"
            rewrite(manifest, lambda m: m["splits"][split].update(shards=[], samples=0, documents=0, tokens=0))
            return _with(place, place.here / "data")

        return lay

    def broken(change: Callable[[Place], object]) -> Sources:
        def lay(place: Place) -> str:
            place.copy("data")
            change(place)
            return _with(place, place.here / "data")

        return lay

    manifest, none = "manifest.json", "{here}/none"
    return {
        "another tokenizer": (of_bytes, "data.sources"),
        "images": (lambda p: _with(p, p.base / "images"), "data.sources.b"),
        "a folder that is missing": (lambda p: _with(p, p.here / "none"), none),
        "a folder without a manifest": (lambda p: _with(p, p.base / "texts"), f"texts/{manifest}"),
        "a run": (lambda p: _with(p, p.base / "run"), f"run/{manifest}"),
        "a file": (lambda p: _with(p, p.base / "texts/copy.txt"), "texts/copy.txt"),
        "nothing": (lambda p: _with(p, ""), "data.sources.b"),
        "a URL": (lambda p: _with(p, "https://example.org/data"), "example.org/data"),
        "a long path": (lambda p: _with(p, "x" * 5000), ""),
        "an empty split": (without("train"), "{here}/data, split train"),
        "an empty validation split": (without("valid"), "{here}/data, split valid"),
        "a manifest that is a pipe": (broken(lambda p: pipe(p.here / "data" / manifest)), manifest),
        "a manifest that is cut": (broken(lambda p: replace(p.here / "data" / manifest, "{")), manifest),
        "a shard that is missing": (
            broken(lambda p: (p.here / "data/train/shard-000000.tar").unlink()),
            "train/shard-000000.tar",
        ),
    }


def _named() -> dict[str, Sources]:
    return {
        "no sources": lambda p: "{}",
        "sources: null": lambda p: "null",
        "sources: a list": lambda p: f"[{p.base}/data]",
        "sources: a text": lambda p: f"{p.base}/data",
        "sources: a source of sources": lambda p: f"{{a: {{b: {p.base}/data}}}}",
        "a name with a slash": lambda p: f"{{a/../b: {p.base}/data}}",
        "a name of dots": lambda p: f"{{'..': {p.base}/data}}",
        "no name": lambda p: f"{{'': {p.base}/data}}",
    }
