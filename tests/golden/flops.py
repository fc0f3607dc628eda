"""FLOPs of a token or an image, forward and backward: published figures, and the presets' own, pinned exactly."""

from __future__ import annotations

from typing import NamedTuple

from tests.golden.inner import flops_per_unit

KIND = "flops"
_NAME = {
    "bert": "masked_lm",
    "gpt2": "causal_lm",
    "llama": "causal_lm",
    "mae": "masked_image",
    "t5": "span_corruption",
    "vit": "image_classification",
}


class Published(NamedTuple):
    """flops: forward and backward, of one token or image. relative: what the source's rounding, and what it counts
    otherwise than we do, may differ by; smaller than what half of GPT's attention comes to (6.6% of gpt2_small's)."""

    flops: float
    relative: float
    source: str


def palm(parameters: int, layers: int, hidden: int, length: int) -> float:
    """6 N + 12 L H Q T (Chowdhery et al. 2022, "PaLM", appendix B): parameters without the embedding of the tokens,
    layers, heads x head size, tokens of a sequence."""
    return 6.0 * parameters + 12.0 * layers * hidden * length


PUBLISHED = {
    "gpt2_small": Published(
        874_944_921_600 / 1024, 0.001, "karpathy/nanoGPT, transformer_sizing.ipynb: a sequence of 1024, 50257 tokens"
    ),
    "llama_7b": Published(
        palm(6_738_415_616 - 32000 * 4096, 32, 4096, 2048), 0.001, "PaLM's formula on Llama 7B's published parameters"
    ),
    "llama_1b": Published(
        palm(1_100_048_384 - 32000 * 2048, 22, 2048, 2048), 0.001, "PaLM's formula on TinyLlama's published parameters"
    ),
    # of the encoder alone: a vocabulary of one token leaves next to nothing of the head
    "bert_base": Published(
        3 * 22.5e9 / 128, 0.01, "Sun et al. 2020, MobileBERT, table 4: 22.5 billion forward for 128 tokens"
    ),
    # parameters alone, half of them met by each token; attention here outweighs the embedding there
    "t5_base": Published(
        6.60e20 / 1000e9, 0.05, "Brown et al. 2020, GPT-3, table D.1: 6.60e20 for 1000 billion tokens"
    ),
    "t5_large": Published(
        2.31e21 / 1000e9, 0.05, "Brown et al. 2020, GPT-3, table D.1: 2.31e21 for 1000 billion tokens"
    ),
    "vit_small": Published(6 * 4.6e9, 0.01, "Touvron et al. 2020, DeiT, table 5: 4.6 billion multiply-adds forward"),
    "vit_base": Published(6 * 17.6e9, 0.01, "Touvron et al. 2020, DeiT, table 5: 17.6 billion multiply-adds forward"),
}
MAE_RATIO = Published(3.3, 0.03, "He et al. 2021, MAE, table 1c: encoding the mask tokens too takes 3.3 x the FLOPs")
OUTPUTS = {"bert": 1, "gpt2": 50257, "llama": 32000, "mae": 1000, "t5": 32128, "vit": 1000}
PRESETS = [*PUBLISHED, "bert_large", "gpt2_xl", "mae_vit_base", "mae_vit_large", "t5_v1_1_base", "vit_large"]


def compute(preset: str, *overrides: str) -> float:
    """-> FLOPs of one token or image."""
    family = preset.split("_")[0]
    length = ("data.seq_len=128",) if family == "bert" else ()
    chosen = (f"model={preset}", f"objective={_NAME[family]}", *length, *overrides)
    return flops_per_unit(chosen, OUTPUTS[family])
