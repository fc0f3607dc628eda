"""A config class of transformers, filled: from model.settings, the keys that all families share, and the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import transformers

from pretraining.models.huggingface.architectures import KNOWN, facts_of, position_offset
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_LAYERS = 10_000
SPREADS = ("initializer_range", "init_std", "initializer_factor")  # of initial weights
# Our keys -> theirs, all of them that a config class has; attribute_map adds a class's own names
SHAPES = {
    "num_layers": ("num_hidden_layers", "decoder_layers"),
    "hidden_size": ("hidden_size",),
    "num_heads": ("num_attention_heads", "decoder_attention_heads"),
    "intermediate_size": (
        "intermediate_size",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "hidden_dim",
        "n_inner",
        "feed_forward_size",
    ),
}
POSITIONS = "max_position_embeddings"
SPECIAL_IDS = {  # theirs -> ours
    "pad_token_id": "pad",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "sep_token_id": "sep",
    "cls_token_id": "cls",
    "mask_token_id": "mask",
    "decoder_start_token_id": "eos",
    "forced_eos_token_id": "eos",
}
VOCABULARY_SIZES = ("vocab_size", "decoder_vocab_size")  # Marian has both, for one table
# Which of our keys sets a key of theirs, which may then not stand in settings
SET_BY = {
    POSITIONS: "model.max_seq_len",
    **dict.fromkeys(VOCABULARY_SIZES, "the prepared data"),
    "num_labels": "the prepared data",
    "id2label": "the prepared data",
    "label2id": "the prepared data",
    **dict.fromkeys(SPECIAL_IDS, "the prepared data"),
    "dtype": "train.precision",
    **dict.fromkeys(("use_cache", "return_dict", "output_attentions", "output_hidden_states"), "what training needs"),
}
# Left to settings
NOT_OURS = ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "layerdrop", "token_dropout")
PROBE = Vocabulary(1024, {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 5, "sep": 6}, 2)


def model_class(architecture: str) -> type[PreTrainedModel]:
    """Raises ValueError where this version of transformers has no such class."""
    try:
        found: object = getattr(transformers, architecture)
    except AttributeError:
        found = None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"transformers {transformers.__version__} has no model class of this name")
    return found


def setting_problems(config: HuggingFaceConfig) -> list[str]:
    """What the architecture's config class objects to in the config."""
    try:
        keys = keys_of(config)
    except ValueError as error:
        return [f"model.architecture={config.architecture}: {error}"]
    set_by = set_by_ours(keys)
    problems = [f"model.settings.{key} is set by {set_by[key]}" for key in config.settings if key in set_by]
    unknown = [key for key in config.settings if key not in keys]
    if unknown:
        problems.append(
            f"model.settings: transformers' {config.architecture} has no {', '.join(unknown)}; it has "
            f"{', '.join(sorted(keys))}"
        )
    for ours, theirs in SHAPES.items():
        stated = vars(config)[ours]
        names = [keys[name] for name in theirs if name in keys]
        if stated is not None and not names:
            problems.append(f"model.{ours}={stated} has no key in the config of transformers' {config.architecture}")
        problems += [
            f"model.settings.{key} and model.{ours} say the same twice"
            for key in config.settings
            if stated is not None and keys.get(key) in names
        ]
    if config.activation_checkpointing and not model_class(config.architecture).supports_gradient_checkpointing:
        problems.append(f"model.activation_checkpointing=true: transformers' {config.architecture} has no such option")
    if facts_of(config.architecture).own_seeds:
        problems += [
            f"model.{key}={rate}: transformers' {config.architecture} draws seeds for its dropout from the clock, so "
            "that no run could be repeated; only 0 is supported"
            for key, rate in (("dropout", config.dropout), ("attention_dropout", config.attention_dropout))
            if rate
        ]
    if config.architecture in KNOWN:
        problems += [
            f"model.settings.{key} is not proven for model.architecture={config.architecture}: what its tokens see "
            "would not be what its role says"
            for key in ("is_decoder", "add_cross_attention")
            if config.settings.get(key)
        ]
    if "hash_seed" in keys and not isinstance(config.settings.get("hash_seed"), int):
        problems.append("model.settings.hash_seed is missing: without it hashes would be drawn from the clock")
    return problems + _number_problems(config, keys)


def _number_problems(config: HuggingFaceConfig, keys: Mapping[str, str]) -> list[str]:
    """Numbers that the class takes and that only show when it is built or filled: it makes layers one by one."""
    layers = [keys[name] for name in SHAPES["num_layers"] if name in keys]
    stated = {f"model.settings.{key}": config.settings.get(key) for key in layers} | {
        "model.num_layers": config.num_layers
    }
    spreads = {key: config.settings.get(key) for key in SPREADS}
    return [
        f"{key}={value}: more than {MOST_LAYERS} layers"
        for key, value in stated.items()
        if isinstance(value, int | float) and value > MOST_LAYERS
    ] + [
        f"model.settings.{key}={value} must not be negative"
        for key, value in spreads.items()
        if isinstance(value, int | float) and value < 0
    ]


def filled_config(config: HuggingFaceConfig, vocabulary: Vocabulary) -> PreTrainedConfig:
    """The architecture's config, for a vocabulary padded to our multiple."""
    keys = keys_of(config)
    values: dict[str, Any] = {**config.settings}

    def put(name: str, value: object) -> None:
        if name in keys:
            values[keys[name]] = value

    for ours, theirs in SHAPES.items():
        for name in theirs if vars(config)[ours] is not None else ():
            put(name, vars(config)[ours])
    rates = {"model.dropout": config.dropout, "model.attention_dropout": config.attention_dropout_rate}
    values |= {key: rates[ours] for key, ours in _dropouts(keys).items()}
    if facts_of(config.architecture).role is Role.IMAGE_ENCODER:
        put("image_size", config.image_size)
        values["num_labels"] = vocabulary.classes
    else:
        for name in VOCABULARY_SIZES:
            put(name, padded_vocabulary(vocabulary.size))
        put(POSITIONS, config.max_seq_len + position_offset(config.architecture, vocabulary))
        values |= special_settings(config, vocabulary.special_ids)
        put("use_cache", False)
    config_class: Any = model_class(config.architecture).config_class
    found: PreTrainedConfig = config_class(**values)
    return found


def special_settings(config: HuggingFaceConfig, special_ids: Mapping[str, int]) -> dict[str, int | None]:
    """The keys of the config class that name special tokens. special_ids: role -> id, of the roles that there are."""
    keys = keys_of(config)
    return {theirs: special_ids.get(role) for theirs, role in SPECIAL_IDS.items() if theirs in keys}


def keys_of(config: HuggingFaceConfig) -> dict[str, str]:
    """See keys_of_class."""
    return keys_of_class(config.architecture)


def keys_of_class(architecture: str) -> dict[str, str]:
    """Name -> the key that it means, of every key of the config class and every other name that it has for one. Raises
    ValueError where transformers has no such class."""
    config_class: Any = model_class(architecture).config_class
    fields = {field.name: field.name for field in dataclasses.fields(config_class)}
    return fields | dict(config_class.attribute_map)


def set_by_ours(keys: Mapping[str, str]) -> dict[str, str]:
    """Key of theirs -> what of ours it follows from, so that it may not stand in settings."""
    return {keys.get(key, key): ours for key, ours in SET_BY.items()} | _dropouts(keys)


def _dropouts(keys: Mapping[str, str]) -> dict[str, str]:
    """Every rate of dropout among a config class's keys -> which of ours it takes."""
    rates = [key for key in keys.values() if ("dropout" in key or "pdrop" in key) and key not in NOT_OURS]
    return {key: "model.attention_dropout" if "att" in key else "model.dropout" for key in rates}
