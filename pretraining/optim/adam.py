"""Adam (Kingma and Ba 2014, algorithm 1): AdamW without its decay is the same update."""

from __future__ import annotations

from pretraining.optim.adamw import AdamW
from pretraining.optim.config import AdamConfig, AdamWConfig


class Adam(AdamW):
    def __init__(self, config: AdamConfig) -> None:
        super().__init__(AdamWConfig("adamw", config.lr, config.betas, config.eps, 0.0, config.layer_decay))
