"""Output folders in which a stranger has laid links, pipes and folders at the names that a command writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import EXPORT, HARMLESS, PREPARE, Case, Place, folder, link, pipe

NAMES = (
    *(".lock", "plan.json", "manifest.json", ".plan.json.tmp", ".manifest.json.tmp", "tokenizer", ".tokenizer.tmp"),
    *("train", "valid", "train/shard-000000.tar", "train/.shard-000000.tar.tmp", "train/shard-000000.index.npz"),
)


def cases() -> Iterator[Case]:
    for name in NAMES:
        yield _case(f"{name} is a link", lambda out, here, name=name: link(out / name, here / "outside" / "victim"))
        yield _case(f"{name} leads nowhere", lambda out, here, name=name: link(out / name, here / "outside" / "new"))
        yield _case(f"{name} is a pipe", lambda out, here, name=name: pipe(out / name))
    for name in ("train", "tokenizer", ".lock"):
        yield _case(f"{name} leads to a folder", lambda out, here, name=name: link(out / name, here / "outside"))
    for name in (".lock", "train/shard-000000.tar"):
        yield _case(f"{name} is a folder", lambda out, here, name=name: folder(out / name))
    yield _case("the output is a link to nothing", lambda out, here: link(out, "/proc/nowhere"))
    yield _case("the output is a pipe", lambda out, here: pipe(out))
    yield _case("the output is a file", lambda out, here: out.write_text(""))
    yield from _again()
    yield from _exports()


def _case(name: str, lay: Callable[[Path, Path], object]) -> Case:
    def arrange(place: Place) -> list[str]:
        (place.here / "in").symlink_to(place.base / "texts")
        lay(place.here / "out", place.here)
        return place.prepare()

    return Case("output folders", name, PREPARE, arrange, "out", HARMLESS)


def _again() -> Iterator[Case]:
    """A preparation that goes on, in a folder that was its own."""
    for name, target in (("train", "outside"), ("valid", "outside"), ("tokenizer", "outside")):

        def arrange(place: Place, name: str = name, target: str = target) -> list[str]:
            (place.here / "in").symlink_to(place.base / "texts")
            out = place.copy("data").rename(place.here / "out")
            (out / "manifest.json").unlink()
            link(out / name, place.here / target)
            settings = ("tokenizer.vocab_size=400", "block_tokens=4096", "valid_fraction=0.2", "num_workers=0")
            return [f"corpus.inputs=[{place.here / 'in'}]", f"output={out}", *settings]

        yield Case("output folders", f"again, {name} leads to a folder", PREPARE, arrange, "out", HARMLESS)


def _exports() -> Iterator[Case]:
    for name, lay in (
        ("is a link", lambda out, outside: link(out, outside)),
        ("is a link to nothing", lambda out, outside: link(out, outside / "new")),
        ("is a pipe", lambda out, outside: pipe(out)),
        ("is a folder", lambda out, outside: out.mkdir()),
        ("lies below a file", lambda out, outside: out.parent.joinpath("x").write_text("") and None),
    ):

        def arrange(place: Place, name: str = name, lay: Callable[[Path, Path], object] = lay) -> list[str]:
            lay(place.here / "out", place.outside)
            output = place.here / ("x/out" if "below" in name else "out")
            return [f"checkpoint={place.base / 'run'}", f"output={output}"]

        codes = HARMLESS if "below" in name else (2,)
        yield Case("output folders", f"export, the output {name}", EXPORT, arrange, "output=", codes)
