"""`model.config_json`: the config.json of a folder as others publish it, for model=huggingface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import HARMLESS, REFUSED, TINY, TRAIN, Case, Place, rewrite
from tests.hostile.surfaces.malformed import DAMAGE

SURFACE = "architectures"
KINDS_OF_DAMAGE = (
    "deep lists",
    "a huge integer",
    "not UTF-8",
    "cut",
    "a list",
    "a pipe",
    "a device",
)  # one reader reads all


def cases() -> Iterator[Case]:
    for name in KINDS_OF_DAMAGE:
        yield _case(f"config.json: {name}", DAMAGE[name], "config.json")
    for name, change in _refused().items():
        yield _case(name, change, "config.json")
    for name, values in _values().items():
        yield _case(name, _put(**values), "model.")
    for name, values in _ignored().items():
        yield _case(name, _put(**values), "", HARMLESS)
    for text in ("gpt2", "https://example.org/x", "/dev/zero", "/etc/passwd", "x" * 5000, "hf://gpt2", "''"):

        def named(place: Place, text: str = text) -> list[str]:
            return _arguments(place, text)

        yield Case(SURFACE, f"named {text[:30]}", TRAIN, named, "model.config_json", megabytes=1600)


def _case(name: str, change: Callable[[Path], object], said: str, codes: tuple[int, ...] = REFUSED) -> Case:
    def arrange(place: Place) -> list[str]:
        change(place.copy("hub") / "config.json")
        return _arguments(place, str(place.here / "hub"))

    return Case(SURFACE, name, TRAIN, arrange, said, codes, megabytes=1600)


def _arguments(place: Place, path: str) -> list[str]:
    run = ("train.steps=1", f"data.path={place.base / 'data'}", f"run_dir={place.here / 'new'}")
    model = ("model=huggingface", "objective=causal_lm", f"model.config_json={path}")
    return [*model, *TINY[5:], *run]


def _put(**values: object) -> Callable[[Path], object]:
    return lambda file: rewrite(file, lambda stored: stored.update(values))


def _refused() -> dict[str, Callable[[Path], object]]:
    """What names no class."""

    def code_beside(file: Path) -> None:
        _put(auto_map={"AutoModelForCausalLM": "evil.Evil"})(file)
        (file.parent / "evil.py").write_text("open('outside/hacked', 'w')")

    def without(key: str) -> Callable[[Path], object]:
        return lambda file: rewrite(file, lambda stored: {k: v for k, v in stored.items() if k != key})

    return {
        "remote code": code_beside,
        "no architectures": without("architectures"),
        "no model_type": without("model_type"),
        "another model_type": _put(model_type="bert"),
        "a model_type of a list": _put(model_type=["gpt2"]),
        "architectures: null": _put(architectures=None),
        "architectures: a text": _put(architectures="GPT2LMHeadModel"),
        "architectures: none": _put(architectures=[]),
        "architectures: a number": _put(architectures=[5]),
        "architectures: a function": _put(architectures=["os.system"]),
        "architectures: a path": _put(architectures=["../evil"]),
        "architectures: no model": _put(architectures=["AutoTokenizer"]),
        "architectures: a long name": _put(architectures=["x" * 100_000]),
    }


def _values() -> dict[str, dict[str, object]]:
    """Of the class's own keys."""
    return {
        "a huge width": {"n_embd": 10**15},
        "a width beyond 64 bits": {"n_embd": 10**30},
        "a negative width": {"n_embd": -32},
        "a width of text": {"n_embd": "x"},
        "a width of a list": {"n_embd": [32]},
        "many layers": {"n_layer": 10**9},
        "no heads": {"n_head": 0},
        "heads that do not divide": {"n_head": 7},
        "huge positions": {"n_positions": 10**15},
        "no positions": {"n_positions": 0},
        "negative positions": {"n_positions": -1},
        "a huge inner width": {"n_inner": 10**15},
        "an activation that is none": {"activation_function": "os.system"},
        "an activation of a list": {"activation_function": ["gelu"]},
        "an epsilon of text": {"layer_norm_epsilon": "x"},
        "a spread that is negative": {"initializer_range": -1.0},
    }


def _ignored() -> dict[str, dict[str, object]]:
    """What the class doesn't know, or what is ours."""
    return {
        "a huge vocabulary": {"vocab_size": 10**15},
        "a vocabulary of text": {"vocab_size": "x"},
        "special ids beyond": {"bos_token_id": 10**15, "eos_token_id": -5, "pad_token_id": "x"},
        "a type that is none": {"dtype": "x", "torch_dtype": ["x"]},
        "attention from elsewhere": {"_attn_implementation": "someone/kernels", "attn_implementation": "evil"},
        "quantization": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        "a pruning": {"pruned_heads": {"0": [99]}},
        "names of methods": {"to_dict": "x", "from_pretrained": "x", "__class__": "x", "name_or_path": "/etc/passwd"},
        "labels": {"id2label": {"0": "x" * 1000}, "num_labels": 10**6},
    }
