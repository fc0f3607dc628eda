"""transformers' GPT-2 and BERT through the adapter beside the native families: one micro-batch forward and backward,
alternating, the same shapes and the same chunked vocabulary loss. `make bench-adapter`
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from pretraining.config import load_config
from pretraining.models.base import TokenEncoder, TokenModel
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import Layers, PlainLayers

VOCABULARY = Vocabulary(8192, {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 5, "sep": 6})
BATCH, LENGTH, ROUNDS = 4, 256, 15
SHAPE = ["model.num_layers=4", "model.hidden_size=256", "model.num_heads=4", "model.intermediate_size=1024"]
PAIRS = {
    "GPT-2": (["model=gpt_debug"], ["model=hf_debug", "model.architecture=GPT2LMHeadModel"], "causal_lm"),
    "BERT": (["model=bert_debug"], ["model=hf_debug", "model.architecture=BertForMaskedLM"], "masked_lm"),
}


@dataclass(frozen=True)
class Heads:
    """Those of an objective, by its name."""

    objective: str

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, torch.nn.Module]:
        if self.objective == "causal_lm":
            return {"head": model.make_token_head(layers)}
        return {"head": cast("TokenEncoder", model).make_masked_head(layers)}


def step(chosen: list[str], objective: str) -> Callable[[], None]:
    """A call of it is one forward and backward, packed documents included."""
    pairs = ["objective.pairing=none"] if objective == "masked_lm" else []
    overrides = [*chosen, *SHAPE, f"objective={objective}", *pairs, f"model.max_seq_len={LENGTH}", "data.path=x"]
    model: Any = attach_heads(
        cast("TokenModel", build_model(load_config(overrides).model, VOCABULARY, PlainLayers())),
        Heads(objective),
        PlainLayers(),
    )
    model.initialize(1)
    tokens = torch.randint(7, VOCABULARY.size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    half = LENGTH // 2
    positions = (torch.arange(LENGTH) % half).expand(BATCH, LENGTH)
    documents = (torch.arange(LENGTH) // half).expand(BATCH, LENGTH)
    masked = torch.arange(0, LENGTH, 7).expand(BATCH, -1)

    def run() -> None:
        hidden = model(tokens=tokens, positions=positions, documents=documents)
        loss = model.head(hidden, tokens) if objective == "causal_lm" else model.head(hidden, masked, tokens[:, ::7])
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return run


def main() -> None:
    for name, (native, adapted, objective) in PAIRS.items():
        steps = [step(native, objective), step(adapted, objective)]
        times: list[list[float]] = [[], []]
        for number in range(ROUNDS + 2):
            for run, seconds in zip(steps, times, strict=True):
                began = time.perf_counter()
                run()
                if number >= 2:
                    seconds.append(time.perf_counter() - began)
        ratios = [b / a for a, b in zip(*times, strict=True)]
        medians = [statistics.median(seconds) for seconds in times]
        print(
            f"{name}: native {medians[0]:.3f} s, adapter {medians[1]:.3f} s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
