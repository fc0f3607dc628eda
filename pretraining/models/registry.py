"""The table of model families: `model.name` -> where its config, module and Hugging Face counterpart are.

In strings, so that nothing heavy is imported before it is chosen. A family is a folder: config.py (free of torch),
model.py, huggingface.py. A new one, or one from outside this package, is an entry in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.registry import load
from pretraining.models.config import ModelConfig
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pretraining.models.base import Model
    from pretraining.models.huggingface_map import HuggingFaceFamily
    from pretraining.parallel.layers import Layers


@dataclass(frozen=True)
class Family:
    """config, model: "module:Class". The config class is a ModelConfig; the model's is made as Class(config,
    vocabulary, layers) and keeps the contract of models.base. huggingface: a module with the members of
    HuggingFaceFamily, or "module:Class" of what is made as Class(config) and has them; None where transformers has no
    counterpart. companions: name -> a module like `huggingface`, where transformers has another part of the model as
    a model of its own; it stands in a folder of that name within the model's folder. roles: what objectives can ask
    of it.
    """

    config: str
    model: str
    roles: frozenset[Role]
    huggingface: str | None = None
    companions: Mapping[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        config="pretraining.models.gpt.config:GPTConfig",
        model="pretraining.models.gpt.model:GPT",
        roles=frozenset({Role.DECODER}),
        huggingface="pretraining.models.gpt.huggingface",
    ),
    "transformer_xl": Family(
        config="pretraining.models.transformer_xl.config:TransformerXLConfig",
        model="pretraining.models.transformer_xl.model:TransformerXL",
        roles=frozenset({Role.RECURRENT_DECODER}),
    ),
    "bert": Family(
        config="pretraining.models.bert.config:BertConfig",
        model="pretraining.models.bert.model:BERT",
        roles=frozenset({Role.TOKEN_ENCODER}),
        huggingface="pretraining.models.bert.huggingface",
    ),
    "roberta": Family(
        config="pretraining.models.bert.config:RobertaConfig",
        model="pretraining.models.bert.model:BERT",
        roles=frozenset({Role.TOKEN_ENCODER}),
        huggingface="pretraining.models.bert.roberta",
    ),
    "xlm_roberta": Family(
        config="pretraining.models.bert.config:RobertaConfig",
        model="pretraining.models.bert.model:BERT",
        roles=frozenset({Role.TOKEN_ENCODER}),
        huggingface="pretraining.models.bert.roberta",
    ),
    "albert": Family(
        config="pretraining.models.bert.config:AlbertConfig",
        model="pretraining.models.bert.model:BERT",
        roles=frozenset({Role.TOKEN_ENCODER}),
        huggingface="pretraining.models.bert.albert",
    ),
    "electra": Family(
        config="pretraining.models.electra.config:ElectraConfig",
        model="pretraining.models.electra.model:Electra",
        roles=frozenset({Role.GENERATOR_DISCRIMINATOR}),
        huggingface="pretraining.models.electra.huggingface",
        companions={"generator": "pretraining.models.electra.huggingface_generator"},
    ),
    "xlnet": Family(
        config="pretraining.models.xlnet.config:XLNetConfig",
        model="pretraining.models.xlnet.model:XLNet",
        roles=frozenset({Role.PERMUTED_ENCODER}),
        huggingface="pretraining.models.xlnet.huggingface",
    ),
    "elmo": Family(
        config="pretraining.models.elmo.config:ELMoConfig",
        model="pretraining.models.elmo.model:ELMo",
        roles=frozenset({Role.BIDIRECTIONAL_DECODER}),
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
    "huggingface": Family(
        config="pretraining.models.huggingface.config:HuggingFaceConfig",
        model="pretraining.models.huggingface.model:build",
        roles=frozenset({Role.DECODER, Role.TOKEN_ENCODER, Role.ENCODER_DECODER, Role.IMAGE_ENCODER}),
        huggingface="pretraining.models.huggingface.huggingface:Counterpart",
    ),
}


def build_model(config: ModelConfig, vocabulary: Vocabulary, layers: Layers) -> Model:
    """The torch module without heads, its weights still empty."""
    return load(FAMILIES[config.name].model)(config, vocabulary, layers)


def huggingface_family(name: str, config: ModelConfig | None = None) -> HuggingFaceFamily[Any]:
    """What maps this family to transformers. config: of the model, for a family that has a counterpart for each.
    Raises InputError where it has none."""
    found = FAMILIES[name].huggingface
    if found is None:
        raise InputError(f"model.name={name} has no Hugging Face counterpart")
    family: Any = load(found)(config) if ":" in found else import_module(found)
    return family


def huggingface_families(name: str, config: ModelConfig | None = None) -> dict[str, HuggingFaceFamily[Any]]:
    """As huggingface_family, by the folder within an export: "" for the model's own, then its companions."""
    companions = {folder: import_module(module) for folder, module in FAMILIES[name].companions.items()}
    families: dict[str, Any] = {"": huggingface_family(name, config), **companions}
    return families
