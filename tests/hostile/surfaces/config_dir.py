"""--config-dir: YAML files that somebody else wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import TRAIN, Case, Place, link, pipe

GLOBAL = "# @package _global_\n"
TEXTS: dict[str, str | bytes] = {
    "a secret": "tracking: {project: '${oc.env:HOSTILE_SECRET}'}",
    "a secret in a list": "tracking: {tags: ['${oc.env:HOSTILE_SECRET}']}",
    "a secret through another key": "tracking: {project: oc.env, run_name: '${${tracking.project}:HOSTILE_SECRET}'}",
    "a secret, decoded": "tracking: {run_name: 'a${oc.decode:${oc.env:HOSTILE_SECRET}}'}",
    "an escaped secret": r"tracking: {tags: ['\${oc.env:HOSTILE_SECRET}']}",
    "a secret in the defaults": "defaults: [{override /optimizer: '${oc.env:HOSTILE_SECRET}'}]",
    "a secret as a package": "defaults: [{/model@tracking: '${oc.env:HOSTILE_SECRET}'}]",
    "a resolver": "tracking: {tags: '${oc.create:[1]}'}",
    "deep lists": "tracking: {tags: " + "[" * 100_000,
    "deep dictionaries": "a: " + "{a: " * 50_000,
    "deep dashes": "- " * 100_000,
    "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
    "a list in itself": "a: &a [*a]",
    "merged keys": "a: &a {b: 1}\nc: {<<: *a}",
    "many values": "tracking: {tags: [" + "x," * 60_000 + "]}",
    "many megabytes": "x: " + "y" * 3_000_000,
    "python": "a: !!python/object/apply:os.system [touch outside/hacked]",
    "a python name": "a: !!python/name:os.system",
    "bytes": "run_dir: !!binary aGk=",
    "a set": "a: !!set {b}",
    "not UTF-8": b"run_dir: \xff",
    "UTF-16": "run_dir: x".encode("utf-16"),
    "NUL": "run_dir: \0",
    "unfinished": "train: {steps",
    "two documents": "--- {a: 1}\n--- {b: 1}",
    "a key twice": "train: {steps: 1, steps: 2}",
    "a list as key": "? [a]\n: b",
    "null as key": "null: 1",
    "a huge integer": "train: {steps: " + "9" * 5000 + "}",
    "a huge hexadecimal": "train: {seed: 0x" + "f" * 60_000 + "}",
    "not a number": "train: {grad_clip: .nan}",
    "half of a surrogate pair": 'tracking: {run_name: "\\ud800"}',
    "itself": "tracking: {run_name: '${tracking.run_name}'}",
    "each other": "tracking: {project: '${.run_name}', run_name: '${.project}'}",
    "nested interpolations": "run_dir: " + "${a" * 300,
    "a list on top": "- 1",
    "optimizer as list": "optimizer: [1]",
    "model as text": "model: x",
    "model without name": "model: {name: [x]}",
    "modules that are no names": "modules: [5, [a], null, '', '..x', 'a b']",
    "defaults of itself": "defaults: [/experiment/mine]",
    "defaults as text": "defaults: x",
    "defaults as number": "defaults: 1",
    "defaults nested": "defaults: [[a]]",
    "a target": "model: {_target_: os.system}",
}


def _files() -> Iterator[tuple[str, Callable[[Path], object]]]:
    yield "a pipe", pipe
    yield "a folder", Path.mkdir
    yield "a link to nothing", lambda file: link(file, "/nowhere")
    yield "a device", lambda file: link(file, "/dev/zero")
    yield "a package", lambda file: file.write_text("# @package " + "a." * 5000 + "b\nx: 1")
    yield "no name", lambda file: (file.parent / "a=b,[c.yaml").write_text("")
    yield "no text", lambda file: Path(os.fsdecode(os.fsencode(file.parent) + b"/\xff.yaml")).write_text("")


def cases() -> Iterator[Case]:
    def case(name: str, lay: Callable[[Path], object]) -> Case:
        def arrange(place: Place) -> list[str]:
            file = place.here / "conf" / "experiment" / "mine.yaml"
            file.parent.mkdir(parents=True)
            lay(file)
            return [*place.train(), f"--config-dir={place.here / 'conf'}", "experiment=mine"]

        secret = {"HOSTILE_SECRET": "a-secret-that-nobody-may-see"}
        return Case("config dir", name, TRAIN, arrange, "error:", environment=secret)

    for name, text in TEXTS.items():
        content = text if isinstance(text, bytes) else (GLOBAL + text).encode()
        yield case(name, lambda file, content=content: file.write_bytes(content))
    for name, lay in _files():
        yield case(name, lay)
