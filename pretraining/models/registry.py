"""The table of model families: `model.name` -> where its config, module and Hugging Face counterpart are.

In strings, so that nothing heavy is imported before it is chosen. A family is a folder: config.py (free of torch),
model.py, huggingface.py. A new one, or one from outside this package, is an entry in FAMILIES.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.registry import load
from pretraining.models.config import TransformerConfig
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pretraining.models.base import Model
    from pretraining.models.huggingface_map import HuggingFaceFamily
    from pretraining.parallel.layers import Layers


@dataclass(frozen=True)
class Family:
    """config, model: "module:Class". The config class is a TransformerConfig; the model's is made as Class(config,
    vocabulary, layers) and keeps the contract of models.base. huggingface: a module with the members of
    HuggingFaceFamily, None where transformers has no counterpart. roles: what objectives can ask of it.
    """

    config: str
    model: str
    roles: frozenset[Role]
    huggingface: str | None = None


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        config="pretraining.models.gpt.config:GPTConfig",
        model="pretraining.models.gpt.model:GPT",
        roles=frozenset({Role.DECODER}),
        huggingface="pretraining.models.gpt.huggingface",
    ),
    "bert": Family(
        config="pretraining.models.bert.config:BertConfig",
        model="pretraining.models.bert.model:BERT",
        roles=frozenset({Role.TOKEN_ENCODER}),
        huggingface="pretraining.models.bert.huggingface",
    ),
    "t5": Family(
        config="pretraining.models.t5.config:T5Config",
        model="pretraining.models.t5.model:T5",
        roles=frozenset({Role.ENCODER_DECODER}),
        huggingface="pretraining.models.t5.huggingface",
    ),
    "transformer": Family(
        config="pretraining.models.transformer_2017.config:TransformerConfig2017",
        model="pretraining.models.transformer_2017.model:Transformer",
        roles=frozenset({Role.ENCODER_DECODER}),
        huggingface="pretraining.models.transformer_2017.huggingface",
    ),
    "vit": Family(
        config="pretraining.models.vit.config:ViTConfig",
        model="pretraining.models.vit.model:ViT",
        roles=frozenset({Role.IMAGE_ENCODER}),
        huggingface="pretraining.models.vit.huggingface",
    ),
    "mae": Family(
        config="pretraining.models.mae.config:MAEConfig",
        model="pretraining.models.mae.model:MAE",
        roles=frozenset({Role.MASKED_IMAGE_AUTOENCODER}),
        huggingface="pretraining.models.mae.huggingface",
    ),
}


def build_model(config: TransformerConfig, vocabulary: Vocabulary, layers: Layers) -> Model:
    """The torch module without heads, its weights still empty."""
    return load(FAMILIES[config.name].model)(config, vocabulary, layers)


def huggingface_family(name: str) -> HuggingFaceFamily[Any]:
    """The module that maps this family to transformers. Raises InputError where it has none."""
    module = FAMILIES[name].huggingface
    if module is None:
        raise InputError(f"model.name={name} has no Hugging Face counterpart")
    family: Any = import_module(module)
    return family
