"""Five training losses and two validation losses of each family under each optimizer, on one process."""

from __future__ import annotations

from itertools import product
from typing import Any

from tests.golden.runs import Case, Data

KIND = "losses"
RELATIVE = 1e-5
FAMILIES = {
    "bert": ("text", "model=bert_debug", "objective=masked_lm"),
    "gpt": ("text", "model=gpt_debug", "objective=causal_lm"),
    "llama": ("text", "model=llama_160m", "objective=causal_lm", "model.num_kv_heads=1", "model.intermediate_size=48"),
    "mae": ("images", "model=mae_debug", "objective=masked_image"),
    "t5": ("text", "model=t5_debug", "objective=span_corruption"),
    "vit": (
        "images",
        "model=vit_debug",
        "objective=image_classification",
        "objective.mixup=0.4",
        "objective.label_smoothing=0.1",
    ),
}
# Rates that move every loss by some percent within five steps, so that a wrong update shows.
OPTIMIZERS = {
    "adafactor": ("optimizer=adafactor", "optimizer.lr=0.1", "optimizer.relative_step=false"),
    "adamw": ("optimizer=adamw", "optimizer.lr=2e-3", "optimizer.eps=1e-6"),
    "lamb": ("optimizer=lamb", "optimizer.lr=4e-2"),
}
# What the runs above leave off.
OPTIONS = {
    "gpt, dropout": ("gpt", "model.dropout=0.1"),
    "bert, layer decay": ("bert", "optimizer.layer_decay=0.5"),
    "t5, accumulation": ("t5", "train.micro_batch_size=8"),
}
LENGTH = ("model.num_layers=2", "train.steps=5", "train.eval_every=5", "train.eval_batches=1")
CASES = [
    Case(f"{family}, {optimizer}", FAMILIES[family][0], (*FAMILIES[family][1:], *OPTIMIZERS[optimizer], *LENGTH))
    for family, optimizer in product(FAMILIES, OPTIMIZERS)
] + [
    Case(name, FAMILIES[family][0], (*FAMILIES[family][1:], *OPTIMIZERS["adamw"], *LENGTH, *options))
    for name, (family, *options) in OPTIONS.items()
]


def compute(case: Case, data: Data) -> dict[str, Any]:
    """-> the losses of steps 1 to 5, and those of validation before the first step and after the last."""
    lines = case.run(data)
    return {key: [line[key] for line in lines if key in line] for key in ("loss", "valid_loss")}
