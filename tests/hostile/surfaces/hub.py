"""`model.init_from`: a folder as others publish it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import TRAIN, Case, Place, link, pipe, replace, rewrite

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def cases() -> Iterator[Case]:
    for name, lay in {**_indexes(), **_weights(), **_tokenizers(), **_configs()}.items():

        def arrange(place: Place, lay: Callable[[Path], object] = lay) -> list[str]:
            lay(place.copy("hub"))
            return place.train(f"model.init_from={place.here / 'hub'}", f"run_dir={place.here / 'new'}")

        yield Case("Hugging Face folders", name, TRAIN, arrange, "hub")
    for text in ("gpt2", "https://example.org/x", "/dev/zero", "/etc/passwd", "x" * 5000, "hf://gpt2", "memory://x"):

        def named(place: Place, text: str = text) -> list[str]:
            return place.train(f"model.init_from='{text}'")

        yield Case("Hugging Face folders", f"named {text[:30]}", TRAIN, named, "model.init_from")


def _indexes() -> dict[str, Callable[[Path], object]]:
    def names(value: object) -> Callable[[Path], object]:
        return lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": value}}))

    def piped(folder: Path) -> None:
        names("x.safetensors")(folder)
        pipe(folder / "x.safetensors")

    strange = (
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\0b",
        "x" * 10_000,
        "memory://x",
        "a/../../b",
        "\ud800",
        None,
        5,
        [],
    )
    return {
        **{f"the index names {ascii(name)[:20]}": names(name) for name in strange},
        "the index names a pipe": piped,
        "the index has a list": lambda f: (f / INDEX).write_text('{"weight_map": []}'),
    }


def _weights() -> dict[str, Callable[[Path], object]]:
    def header(size: int, text: bytes = b"{}") -> Callable[[Path], object]:
        return lambda f: (f / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text)

    def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> Callable[[Path], object]:
        text = json.dumps(
            {"transformer.wte.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
        ).encode()
        return header(len(text), text + b"\0" * 64)

    def changed(change: Callable[[Any], Any]) -> Callable[[Path], object]:
        def apply(folder: Path) -> None:
            from safetensors.torch import load_file, save_file

            tensors = load_file(folder / WEIGHTS)
            save_file({name: change(tensor).contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)

        return apply

    return {
        "weights are a pipe": lambda f: pipe(f / WEIGHTS),
        "weights are a device": lambda f: link(f / WEIGHTS, "/dev/zero"),
        "weights are a folder": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "weights are missing": lambda f: (f / WEIGHTS).unlink(),
        "weights are a pickle": lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        "weights are cut": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        "weights are empty": lambda f: (f / WEIGHTS).write_bytes(b""),
        "a header of 2^63 bytes": header(2**63),
        "a header of 100 MB": header(100_000_000),
        "a header of deep lists": header(100_000, b"[" * 100_000),
        "a tensor without bound": entry([10**9, 10**9], [0, 64]),
        "a negative shape": entry([-1, 4], [0, 64]),
        "offsets beyond": entry([4, 4], [0, 10**12]),
        "offsets in reverse": entry([4, 4], [64, 0]),
        "another type": entry([4, 4], [0, 64], "X9"),
        "NaN": changed(lambda t: t * float("nan")),
        "infinity": changed(lambda t: t * float("inf")),
        "integers": changed(lambda t: t.int()),
        "transposed": changed(lambda t: t.T if t.dim() == 2 and t.shape[0] != t.shape[1] else t[:1]),
        "empty tensors": changed(lambda t: t[:0]),
    }


def _tokenizers() -> dict[str, Callable[[Path], object]]:
    file = "tokenizer.json"
    return {
        "tokenizer.json is a pipe": lambda f: pipe(f / file),
        "tokenizer.json is a folder": lambda f: ((f / file).unlink(), (f / file).mkdir()),
        "tokenizer.json is deep": lambda f: replace(f / file, "[" * 100_000),
        "tokenizer.json is cut": lambda f: replace(f / file, (f / file).read_bytes()[:-10]),
        "tokenizer.json is empty": lambda f: replace(f / file, "{}"),
        "tokenizer.json is not UTF-8": lambda f: replace(f / file, b"\xff"),
        "tokenizer.json without vocabulary": lambda f: rewrite(f / file, lambda v: v["model"].update(vocab={})),
        "tokenizer.json with a list": lambda f: rewrite(f / file, lambda v: v.update(model=[])),
    }


def _configs() -> dict[str, Callable[[Path], object]]:
    def put(**values: object) -> Callable[[Path], object]:
        return lambda f: rewrite(f / "config.json", lambda v: v.update(values))

    return {
        "remote code": lambda f: (put(model_type="x", auto_map={"AutoModel": "evil.Evil"})(f), _evil(f)),
        "another model": put(model_type="bert"),
        "a huge vocabulary": put(vocab_size=10**15),
        "a negative vocabulary": put(vocab_size=-5),
        "many layers": put(n_layer=10**9),
        "no heads": put(n_head=0),
        "an activation of a list": put(activation_function=["x"]),
    }


def _evil(folder: Path) -> None:
    (folder / "evil.py").write_text("open('outside/hacked', 'w')")
