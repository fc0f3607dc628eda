"""Optimizers' hyperparameters, checked before torch is imported."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import pydantic

from data_pipeline.common.fields import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    configclass,
    unused_with,
    used_with,
)


class OptimizerConfig(Protocol):
    """What every optimizer's config has."""

    @property
    def name(self) -> str: ...

    @property
    def lr(self) -> float:
        """Peak of the learning rate."""
        ...


LayerDecay = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]


@configclass
class AdamWConfig:
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".

    lr: peak of the learning rate; 6e-4 is nanoGPT's for GPT-2 small, small models take up to 2e-3.
    betas: decay rates of the averages of gradients and of squared gradients.
    eps: added to the root of the squared gradients' average.
    weight_decay: decay of weights and embeddings, times the learning rate; biases and norms have none.
    layer_decay: factor of the learning rate per layer below the top; 1 for none.
    """

    name: Literal["adamw"]
    lr: PositiveFloat = 6e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    layer_decay: LayerDecay = 1.0


@configclass
class AdamConfig:
    """Kingma and Ba 2014, "Adam", algorithm 1, without decay; the defaults are Vaswani et al.'s (2017, section 5.3).

    lr: peak of the learning rate; 7e-4 is Vaswani et al.'s for 512 features and a warm-up of 4000 steps, which is
        (hidden_size x warmup_steps) ** -0.5.
    betas: decay rates of the averages of gradients and of squared gradients.
    eps: added to the root of the squared gradients' average.
    layer_decay: factor of the learning rate per layer below the top; 1 for none.
    """

    name: Literal["adam"]
    lr: PositiveFloat = 7e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: PositiveFloat = 1e-9
    layer_decay: LayerDecay = 1.0


@configclass
class LambConfig:
    """You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2.

    lr: peak of the learning rate; 1e-2 is for about a thousand steps. The paper's for BERT's long runs is 6.25e-4 at
        512 sequences, times sqrt(2) per doubling up to 5e-3 at 32768, with a warm-up of 1/320 to 1/5 of the steps
        (tables 4 and 5).
    betas: decay rates of the averages of gradients and of squared gradients.
    eps: added to the root of the squared gradients' average.
    weight_decay: decay of weights and embeddings; biases and norms have none.
    layer_decay: factor of the learning rate per layer below the top; 1 for none.
    bias_correction: of the averages, as in the paper; the authors' BERT runs, and apex by option, leave it out.
    trust_clip: smallest and largest trust ratio; null for no limits, as in the paper (DeepSpeed's are 0.01 and 10).
    adapt_1d: biases and norms have a trust ratio as well; the authors' code excludes them with the decay.
    decoupled_decay: weight decay outside of the trust ratio, as AdamW's; in the paper it is inside.
    """

    name: Literal["lamb"]
    lr: PositiveFloat = 1e-2
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.01
    layer_decay: LayerDecay = 1.0
    bias_correction: bool = True
    trust_clip: tuple[NonNegativeFloat, PositiveFloat] | None = None
    adapt_1d: bool = False
    decoupled_decay: Annotated[bool, unused_with("weight_decay", 0.0)] = False

    def __post_init__(self) -> None:
        if self.trust_clip is not None and self.trust_clip[0] > self.trust_clip[1]:
            raise ValueError(f"trust_clip={list(self.trust_clip)}: the first must be the smaller one")


@configclass
class AdafactorConfig:
    """Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost".

    lr: peak of the learning rate. With relative_step an upper bound of 1 / sqrt(step): the paper's 1e-2 makes T5's
        schedule (Raffel et al. 2020, section 3.1.2), with scheduler=constant, which comes with it.
    eps: added to squared gradients, and the smallest scale of a parameter (epsilon 1 and 2 of algorithm 6).
    clip_threshold: largest root mean square of an update (section 6).
    decay_rate: the average of squared gradients decays by 1 - step ** decay_rate (section 7.2).
    beta1: decay rate of the average of gradients; null keeps no such average.
    weight_decay: decay of weights and embeddings, times the learning rate; biases and norms have none.
    layer_decay: factor of the learning rate per layer below the top; 1 for none.
    scale_parameter: steps are relative to the root mean square of the parameter (section 8).
    relative_step: the learning rate is at most 1 / sqrt(step); without it the scheduler sets the rate.
    warmup_init: it is at most 1e-6 x step as well (section 9).
    """

    name: Literal["adafactor"]
    lr: PositiveFloat = 1e-2
    eps: tuple[PositiveFloat, PositiveFloat] = (1e-30, 1e-3)
    clip_threshold: PositiveFloat = 1.0
    decay_rate: Annotated[float, pydantic.Field(lt=0.0)] = -0.8
    beta1: Fraction | None = None
    weight_decay: NonNegativeFloat = 0.0
    layer_decay: LayerDecay = 1.0
    scale_parameter: bool = True
    relative_step: bool = True
    warmup_init: Annotated[bool, used_with("relative_step", True)] = False

    def __post_init__(self) -> None:
        if self.warmup_init and not self.relative_step:
            raise ValueError("warmup_init=true needs relative_step=true")
