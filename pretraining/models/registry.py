"""The table of model families."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pretraining.models.bert.config import BertConfig
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.mae.config import MAEConfig
from pretraining.models.t5.config import T5Config
from pretraining.models.vit.config import ViTConfig

ModelConfig = Annotated[GPTConfig | BertConfig | T5Config | ViTConfig | MAEConfig, Field(discriminator="name")]
