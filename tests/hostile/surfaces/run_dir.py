"""A run's folder that others can write to: links and pipes at the names that a run writes, logs of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import EXPORT, HARMLESS, SHOW, TRAIN, Case, Place, link, pipe

WRITTEN = ("config.yaml", "run.json", "verdict.json", "metrics.jsonl", "loss.png")
TEMPORARY = tuple(f"{dot}{name}.tmp" for dot in ("", ".") for name in WRITTEN[:3])
LOGS: dict[str, str | bytes] = {
    "deep lists": "[" * 100_000 + "\n",
    "a deep step": '{"step": ' + "[" * 100_000 + "\n",
    "a step that is null": '{"step": null, "loss": 1}\n',
    "a step that is text": '{"step": "x", "loss": 1}\n',
    "a step without bound": '{"step": ' + "9" * 4000 + ', "loss": 1}\n',
    "a step with 5000 digits": '{"step": ' + "9" * 5000 + ', "loss": 1}\n',
    "a loss that is text": '{"step": 1, "loss": "x", "valid_loss": []}\n',
    "a loss without bound": '{"step": 1, "loss": 1' + "0" * 400 + "}\n",
    "NaN": '{"step": 1, "loss": NaN}\n{"step": 1, "loss": Infinity}\n',
    "not UTF-8": b'{"step": 1, "loss": "\xff"}\n',
    "one line": "x" * 50_000_000,
    "many lines": '{"step": 1}\n' * 300_000,
    "NUL": b"\0" * 1_000_000,
    "a list": "[1]\n2\nnull\n",
}


def cases() -> Iterator[Case]:
    for name in (*WRITTEN, *TEMPORARY):
        yield _train(f"{name} is a link", lambda run, here, name=name: link(run / name, here / "outside" / "victim"))
        yield _train(
            f"{name} is a dangling link", lambda run, here, name=name: link(run / name, here / "outside" / "new")
        )
        if name in WRITTEN:
            yield _train(f"{name} is a pipe", lambda run, here, name=name: pipe(run / name))
            yield _train(
                f"{name} is a folder", lambda run, here, name=name: (run / name).unlink() or (run / name).mkdir()
            )
    for name, content in LOGS.items():

        def lay(run: Path, here: Path, content: str | bytes = content) -> None:
            (run / "metrics.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())

        yield _train(f"metrics.jsonl: {name}", lay)
        yield _export(f"metrics.jsonl: {name}", lay)
    yield _export("metrics.jsonl is a pipe", lambda run, here: pipe(run / "metrics.jsonl"))
    yield from _new_runs()
    yield from _shown()


def _train(name: str, lay: Callable[[Path, Path], object], *more: str) -> Case:
    def arrange(place: Place) -> list[str]:
        lay(place.copy("run"), place.here)
        return place.train(*more)

    return Case("run_dir", name, TRAIN, arrange, "run", HARMLESS)


def _export(name: str, lay: Callable[[Path, Path], object]) -> Case:
    def arrange(place: Place) -> list[str]:
        lay(place.copy("run"), place.here)
        return [f"checkpoint={place.here / 'run'}", f"output={place.here / 'exported'}"]

    return Case("run_dir", f"export, {name}", EXPORT, arrange, "run", HARMLESS)


def _new_runs() -> Iterator[Case]:
    def new(name: str, lay: Callable[[Path, Path], object], *more: str, said: str = "run") -> Case:
        def arrange(place: Place) -> list[str]:
            lay(place.here / "run", place.here)
            return place.train(*more)

        return Case("run_dir", name, TRAIN, arrange, said)

    yield new("a file", lambda run, here: run.write_text(""))
    yield new("a pipe", lambda run, here: pipe(run))
    yield new("a link to nothing", lambda run, here: link(run, "/proc/nowhere"))
    yield new("a link to itself", lambda run, here: link(run, run))
    yield new("below a file", lambda run, here: run.write_text(""), "run_dir=run/run")
    yield new("a long name", lambda run, here: None, "run_dir=" + "x" * 5000)
    yield new("a long path", lambda run, here: None, "run_dir=" + "x/" * 5000)
    yield new("/dev/null", lambda run, here: None, "run_dir=/dev/null")
    yield new("/proc", lambda run, here: None, "run_dir=/proc/x")
    # A wrong key is told before anything of the folder is known.
    for name, lay in (
        ("a link", lambda run, here: link(run / "verdict.json", here / "outside" / "new")),
        ("a pipe", lambda run, here: pipe(run / "verdict.json")),
        ("a folder", lambda run, here: (run / "verdict.json").mkdir(parents=True)),
    ):
        yield new(f"a verdict that is {name}", lay, "no_key=1", said="no_key")

    def fewer(place: Place) -> list[str]:
        place.copy("run")
        return place.train("train.steps=1")

    yield Case("run_dir", "fewer steps than the run has", TRAIN, fewer, "train.steps=1")


def _shown() -> Iterator[Case]:
    def modules(place: Place) -> list[str]:
        """config.yaml names a module that lies in the working folder."""
        run = place.copy("run")
        (place.here / "evil.py").write_text(f"open({str(place.outside / 'hacked')!r}, 'w')")
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("modules: []", "modules: [evil]"))
        return [f"run_dir={run}"]

    yield Case("run_dir", "show, config.yaml imports a module", SHOW, modules, "modules=[evil]", real=True)
    strange = {"run_dir": "${oc.env:HOME}", "train": "[1]", "model": "null", "nobody": "1", "_target_": "os.system"}
    for key, value in strange.items():

        def changed(place: Place, key: str = key, value: str = value) -> list[str]:
            run = place.copy("run")
            lines = (run / "config.yaml").read_text().splitlines()
            start = next((n for n, line in enumerate(lines) if line.startswith(f"{key}:")), len(lines))
            end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
            (run / "config.yaml").write_text("\n".join([*lines[:start], f"{key}: {value}", *lines[end:]]) + "\n")
            return [f"run_dir={run}"]

        yield Case("run_dir", f"show, config.yaml has {key}: {value}", SHOW, changed, "config.yaml")
