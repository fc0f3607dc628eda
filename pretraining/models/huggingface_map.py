"""How a family states its Hugging Face counterpart: config.json both ways, and what a proof of the export feeds in.

A family's `huggingface.py` is a module with the members of `HuggingFaceFamily`; `models.weight_map` has what it maps
weights with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.export import Frame
from pretraining.models.base import Model
from pretraining.models.config import TransformerConfig
from pretraining.models.weight_map import WeightMap

Values = dict[str, Any]  # a config.json
Inputs = dict[str, Tensor]  # of one forward, under the names that transformers' models take
M_contra = TypeVar("M_contra", bound=Model, contravariant=True)

PROBE_LENGTHS = (1.0, 0.37, 0.1)  # of the longest sequence: rows without padding


class HuggingFaceFamily(Protocol[M_contra]):
    """What a family's huggingface.py states."""

    architectures: tuple[str, ...]  # the classes of transformers that config.json may name
    frame: Frame | None  # of its tokenizer; None where there is none

    def huggingface_config(self, model: M_contra, special_ids: Mapping[str, int]) -> Values:
        """config.json. special_ids: pad, bos, eos, ... -> id; empty for images. Raises InputError, naming the options,
        where transformers has no such model."""
        ...

    def from_huggingface_config(self, values: Values) -> Values:
        """Our model keys, as config.json states them. Raises InputError for what the family has no option for, KeyError
        where a key is missing."""
        ...

    def weight_map(self, model: M_contra) -> list[WeightMap]:
        """An entry for every tensor of the model, or of the part that is exported by itself; tied tensors once."""
        ...

    def spellings(self, name: str) -> list[str]:
        """Under which names a folder may have the tensor that `weight_map` calls `name`, the usual one first."""
        ...

    def probe_inputs(self, model: M_contra, rng: np.random.Generator) -> list[Inputs]:
        """What is fed to both models. The same for the same shapes."""
        ...

    def probe_outputs(self, model: M_contra, inputs: Inputs, values: Values) -> Inputs:
        """Our model's outputs, named and arranged as transformers' are. values: config.json."""
        ...


class _Required:
    """The default of a key that config.json must have."""


@dataclass(frozen=True)
class Key:
    """One key of our config and of config.json.

    default: what it means where theirs is missing or null; a function is given config.json. resolved: the attribute
    of our config that is written, where it is not `ours`. spelled: our values -> theirs, where they differ.
    """

    ours: str
    theirs: str
    default: object = _Required
    resolved: str | None = None
    spelled: Mapping[str, str] = field(default_factory=dict)

    def write(self, config: TransformerConfig) -> object:
        value = getattr(config, self.resolved or self.ours)
        return self.spelled[value] if self.spelled else value

    def read(self, values: Values) -> object:
        found = values.get(self.theirs)
        if found is None:
            if self.default is _Required:
                raise KeyError(self.theirs)
            found = self.default(values) if callable(self.default) else self.default
        if not self.spelled:
            return found
        readable = {theirs: ours for ours, theirs in self.spelled.items()}
        if found not in readable:
            raise InputError(unsupported(self.theirs, found, list(readable)))
        return readable[found]


@dataclass(frozen=True)
class ConfigMap:
    """One architecture of transformers.

    keys: both ways. only: theirs -> the values that are supported, the first of which is written. checked: the same for
    keys that are not written. written: theirs -> an attribute of our config, not read back. ours: what else our
    config is.
    """

    architecture: str
    model_type: str
    keys: Sequence[Key]
    only: Mapping[str, Sequence[object]] = field(default_factory=dict)
    checked: Mapping[str, Sequence[object]] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    ours: Mapping[str, object] = field(default_factory=dict)

    def export(self, config: TransformerConfig) -> Values:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{key.theirs: key.write(config) for key in self.keys},
            **{theirs: getattr(config, attribute) for theirs, attribute in self.written.items()},
            **{theirs: supported[0] for theirs, supported in self.only.items()},
        }

    def restore(self, values: Values) -> Values:
        """Raises InputError with every value that is not supported, KeyError for a missing key."""
        require(values, {**self.only, **self.checked})
        return {**self.ours, **{key.ours: key.read(values) for key in self.keys}}


def require(values: Values, supported: Mapping[str, Sequence[object]]) -> None:
    """Raises InputError where a key is there with another value than those."""
    wrong = [
        unsupported(key, values[key], good) for key, good in supported.items() if values.get(key, good[0]) not in good
    ]
    if wrong:
        raise InputError("; ".join(wrong))


def unsupported(key: str, value: object, supported: Collection[object]) -> str:
    return f"{key}={value!r} is not supported, only {' or '.join(map(repr, supported))}"


def require_model_type(values: Values, family: str, readable: Collection[str]) -> None:
    if values.get("model_type") not in readable:
        raise InputError(
            f"model_type {values.get('model_type')!r} is not one that model.name={family} reads ({', '.join(readable)})"
        )


def probe_rows(length: int, vocab_size: int, rng: np.random.Generator) -> list[Tensor]:
    """Random ids, int [1, n] for n of several shares of `length`."""
    sizes = [max(1, round(length * share)) for share in PROBE_LENGTHS]
    return [torch.from_numpy(rng.integers(0, vocab_size, (1, size))) for size in sizes]


def probe_pairs(length: int, vocab_size: int, rng: np.random.Generator) -> list[Inputs]:
    """The rows of `probe_rows`, each of two segments."""
    return [
        {"input_ids": row, "token_type_ids": (torch.arange(row.shape[1]) > row.shape[1] // 2).long()[None]}
        for row in probe_rows(length, vocab_size, rng)
    ]


def probe_images(image_size: int, rng: np.random.Generator) -> Tensor:
    """fp32 [2, 3, image_size, image_size]."""
    return torch.from_numpy(rng.standard_normal((2, 3, image_size, image_size)).astype(np.float32))
