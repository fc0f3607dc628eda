"""Optimizers' hyperparameters, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.config import Fraction, PositiveFloat, configclass


@configclass
class AdamWConfig:
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization". No decay on biases and norms."""

    name: Literal["adamw"]
    lr: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = 0.1

    def build(self) -> Any:
        from pretraining.optim.adamw import AdamW

        return AdamW(self)


OptimizerConfig = AdamWConfig
