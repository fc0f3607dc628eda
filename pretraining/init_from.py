"""`model.init_from`: pretraining starts from the weights of a Hugging Face folder of the same family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.config import InputError
from data_pipeline.tokenizer import Tokenizer

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class HuggingFaceFolder:
    """A folder whose config, weights' names and shapes, and tokenizer agree with the model: checked when it is made.

    Raises InputError with every fault. Reads JSON and safetensors only.
    """

    def __init__(self, folder: str, model_config: Any, vocab_size: int, tokenizer: Tokenizer | None) -> None:
        from pretraining.parity import COUNTERPARTS

        self.folder = Path(folder)
        family = COUNTERPARTS[model_config.name].load()
        values = _read_json(self.folder / "config.json")
        faults = _config_faults(family, values, model_config, vocab_size)
        if values.get("vocab_size", vocab_size) != vocab_size:
            faults.append(f"its vocabulary has {values['vocab_size']} entries, that of the prepared data {vocab_size}")
        if tokenizer is not None:
            faults += _tokenizer_faults(self.folder / "tokenizer.json", tokenizer)
        self.entries = family.weight_map(model_config, vocab_size)
        self.files = self._find_weights()
        absent = sorted(entry.theirs for entry in self.entries if entry.theirs not in self.files)
        if absent and not faults:
            faults.append(f"it lacks the weights {', '.join(absent[:5])}{' and more' if len(absent) > 5 else ''}")
        if faults:
            raise InputError(f"model.init_from={folder} does not fit: " + "; ".join(faults))

    def load_into(self, model: Any) -> None:
        """Overwrites every parameter of `model`, or this rank's part of it. Raises InputError for another shape."""
        import torch
        from safetensors import safe_open

        from pretraining.optim.shards import Box
        from pretraining.parallel.layers import box_of

        parameters = dict(model.named_parameters()) | dict(model.named_buffers())  # fixed positions are buffers
        missing = {name for name, _ in model.named_parameters()} - {entry.ours for entry in self.entries}
        assert not missing, f"the weight map leaves out {sorted(missing)}"
        opened = {file: safe_open(str(file), framework="pt") for file in set(self.files.values())}
        with torch.no_grad():
            for entry in self.entries:
                found = opened[self.files[entry.theirs]].get_tensor(entry.theirs).float()
                shape, box = box_of(parameters[entry.ours], model.layers.size, model.layers.rank)
                wanted = entry.export(torch.empty(shape, device="meta")).shape
                if found.shape != wanted:
                    raise InputError(f"model.init_from={self.folder}: {entry.theirs} is {list(found.shape)}, "
                                     f"the model's is {list(wanted)}")
                parameters[entry.ours].copy_(entry.restore(found)[box.slices_of(Box((0,) * len(shape), shape))])

    def _find_weights(self) -> dict[str, Path]:
        """Each tensor's file."""
        from safetensors import SafetensorError, safe_open

        single = self.folder / _WEIGHTS
        if (self.folder / _INDEX).is_file():
            table = _read_json(self.folder / _INDEX)["weight_map"]
            return {name: self.folder / Path(file).name for name, file in table.items()}
        if not single.is_file():
            raise InputError(f"model.init_from={self.folder}: {_WEIGHTS} is missing (weights are read from safetensors "
                             "only, never from a pickle)")
        try:
            with safe_open(str(single), framework="pt") as file:
                return dict.fromkeys(file.keys(), single)
        except SafetensorError as error:
            raise InputError(f"{single}: not a safetensors file ({error})") from error


def _config_faults(family: Any, values: dict[str, Any], model_config: Any, vocab_size: int) -> list[str]:
    """Our keys that the folder's config.json contradicts. Ours go the way through their form as well, so that null
    and its default are one."""
    ids = dict.fromkeys(("pad", "bos", "eos", "unk", "mask", "cls", "sep"), 0)
    try:
        theirs = family.from_huggingface_config(values)
        ours = family.from_huggingface_config(family.huggingface_config(model_config, vocab_size, ids))
    except InputError as error:
        return [str(error)]
    except KeyError as error:
        return [f"its config.json lacks {error}"]
    return [f"model.{key} is {ours[key]}, the folder's is {theirs[key]}" for key in ours
            if key != "vocab_size" and ours[key] != theirs[key]]


def _tokenizer_faults(path: Path, tokenizer: Tokenizer) -> list[str]:
    """Ids mean what they mean to the prepared data: by texts on which tokenizers differ."""
    if not path.is_file():
        return []
    import tokenizers

    from data_pipeline.huggingface_export import disagreements

    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.encode_special_tokens = True
    wrong = disagreements(_Plainly(theirs), tokenizer)
    return [f"its tokenizer.json treats {wrong[0]} otherwise than the prepared data's tokenizer"] if wrong else []


class _Plainly:
    """A tokenizers.Tokenizer without special tokens added or shown."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"model.init_from: {path} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"model.init_from: {path} is not a JSON object")
    return values
