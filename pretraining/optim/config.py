"""Optimizers' hyperparameters, checked before torch is imported.

Common to all: lr, the schedule's peak; weight_decay, not on biases and norms; layer_decay, by which the learning
rate falls per layer from the top (1.0: off).
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from data_pipeline.common.fields import Fraction, PositiveFloat, configclass

LayerDecay = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0)]


@configclass
class AdamWConfig:
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"."""

    name: Literal["adamw"]
    lr: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    layer_decay: LayerDecay = 1.0


@configclass
class LambConfig:
    """You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2.

    bias_correction: of the moments, as in the paper; the authors' BERT runs, and apex by option, leave it out.
    trust_clip: least and largest trust ratio (none in the paper; DeepSpeed's Lamb has 0.01 and 10).
    adapt_1d: biases and norms have a trust ratio as well; the authors' code excludes them with the decay.
    decoupled_decay: weight decay outside of the trust ratio, as AdamW's; in the paper it is inside.
    """

    name: Literal["lamb"]
    lr: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.01
    layer_decay: LayerDecay = 1.0
    bias_correction: bool = True
    trust_clip: tuple[NonNegativeFloat, PositiveFloat] | None = None
    adapt_1d: bool = False
    decoupled_decay: bool = False

    def __post_init__(self) -> None:
        if self.trust_clip is not None and self.trust_clip[0] > self.trust_clip[1]:
            raise ValueError(f"trust_clip={list(self.trust_clip)}: the first is to be the smaller one")


@configclass
class AdafactorConfig:
    """Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost".

    eps: added to squared gradients, and the least scale of a parameter (epsilon 1 and 2 of algorithm 6).
    relative_step: lr is an upper bound of 1 / sqrt(step). The paper's is 1e-2, which makes the schedule of T5
    (Raffel et al. 2020, section 3.1.2) and goes with scheduler=constant. Otherwise the scheduler sets the rate.
    warmup_init: 1e-6 x step is an upper bound as well (Vaswani-like warm-up of section 9).
    scale_parameter: steps are relative to the root mean square of the parameter (section 8).
    """

    name: Literal["adafactor"]
    lr: PositiveFloat
    eps: tuple[PositiveFloat, PositiveFloat] = (1e-30, 1e-3)
    clip_threshold: PositiveFloat = 1.0
    decay_rate: Annotated[float, pydantic.Field(lt=0.0)] = -0.8
    beta1: Fraction | None = None
    weight_decay: NonNegativeFloat = 0.0
    layer_decay: LayerDecay = 1.0
    scale_parameter: bool = True
    relative_step: bool = True
    warmup_init: bool = False

    def __post_init__(self) -> None:
        if self.warmup_init and not self.relative_step:
            raise ValueError("warmup_init=true needs relative_step=true")


OptimizerConfig = Annotated[AdamWConfig | LambConfig | AdafactorConfig, pydantic.Field(discriminator="name")]
