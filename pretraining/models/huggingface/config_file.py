"""A folder's config.json as the keys of model=huggingface. Nothing else of the folder is read, least of all code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from transformers import PreTrainedConfig

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import is_folder
from data_pipeline.common.json_files import read_json
from pretraining.models.huggingface.architectures import position_offset
from pretraining.models.huggingface.settings import POSITIONS, SHAPES, keys_of_class, model_class, set_by_ours
from pretraining.models.vocabulary import Vocabulary

KEY = "model.config_json"
HOUSEKEEPING = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))  # of any class
Keys = Mapping[str, object]


def with_file(path: str, given: Keys) -> dict[str, object]:
    """`given`, our keys as a user states them, and what else config.json says; where both say something, `given`
    counts. Rates of dropout, special ids and the size of the vocabulary are never the file's. Raises InputError."""
    file = Path(path) / "config.json" if is_folder(Path(path)) else Path(path)
    stored = read_json(file, key=KEY)
    if "auto_map" in stored:
        raise InputError(f"{KEY}: {file} names code of its own (auto_map), which is never run")
    architecture = str(given.get("architecture") or _architecture(file, stored))
    try:
        keys, own = keys_of_class(architecture), cast(type[PreTrainedConfig], model_class(architecture).config_class)
    except ValueError as error:
        raise InputError(f"{KEY}: {file}: model.architecture={architecture}: {error}") from error
    if stored.get("model_type") != own.model_type:
        raise InputError(
            f"{KEY}: {file} has model_type={stored.get('model_type')}, that of {architecture} is {own.model_type}"
        )
    # What the class does not know it would ignore as well
    known = {keys[key]: value for key, value in stored.items() if key in keys}
    stated = {name for ours, names in SHAPES.items() if given.get(ours) is not None for name in names}
    left_out = {*HOUSEKEEPING, *set_by_ours(keys), *(keys[name] for name in stated if name in keys)}
    settings = {key: value for key, value in known.items() if key not in left_out}
    own_settings = cast(Keys, given.get("settings") or {})
    return {
        **_sizes(architecture, keys, known),
        **given,
        "architecture": architecture,
        "settings": {**settings, **own_settings},
    }


def _architecture(file: Path, stored: Keys) -> str:
    found = stored.get("architectures")
    if not isinstance(found, list) or not found:
        raise InputError(f"{KEY}: {file} names no architectures: set model.architecture")
    return str(found[0])


def _sizes(architecture: str, keys: Mapping[str, str], known: Keys) -> dict[str, object]:
    """model.max_seq_len and model.image_size, where the file says so."""
    found: dict[str, object] = {}
    positions, image_size, pad = (known.get(keys.get(k, k)) for k in (POSITIONS, "image_size", "pad_token_id"))
    if isinstance(positions, int) and isinstance(pad, int | None):
        found["max_seq_len"] = positions - position_offset(architecture, Vocabulary(1, {"pad": pad or 0}))
    if isinstance(image_size, int):
        found["image_size"] = image_size
    return found
