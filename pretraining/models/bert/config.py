"""The shapes and options of BERT, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import PositiveFloat, configclass
from pretraining.models.config import TextConfig


@configclass
class BertConfig(TextConfig):
    """An encoder with two segments.

    norm_position: post is the published one; pre normalizes the input of each sublayer, and once more at the end
        (Xiong et al. 2020).
    initializer_range: standard deviation of the initial weights.
    """

    name: Literal["bert"]
    _: KW_ONLY
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: PositiveFloat = 1e-12
    initializer_range: PositiveFloat = 0.02
