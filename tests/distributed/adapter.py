"""The adapter's architectures against one process: `make parity` runs all of it and writes docs/parity_adapter.md.

20 steps in fp32 with clipping, accumulation and tied weights, dropout 0; under ZeRO-3 the smallest tensors are dealt
out too.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pretraining.engines import deepspeed
from pretraining.models.huggingface.architectures import KNOWN
from tests.distributed.parity import COMMON, LAYOUTS, LOSS_BOUND, OPTIMIZERS, WEIGHT_BOUND, Difference, prepare_data
from tests.helpers import ROOT, finished_weights, metrics, run_world, train_alone, train_in_world

MASKED = ["objective=masked_lm", "objective.pairing=none"]
ORDER = ["objective=masked_lm", "objective.pairing=sentence_order"]
EMBEDDING = ["model.settings.embedding_size=20"]
REFORMER = (
    "{attn_layers:[local,lsh],axial_pos_shape:[4,8],axial_pos_embds_dim:[12,24],attention_head_size:12,"
    "local_attn_chunk_length:8,lsh_attn_chunk_length:8,local_num_chunks_after:1,lsh_num_chunks_after:1,num_buckets:4,"
    "hash_seed:1}"
)
ARCHITECTURES: dict[str, list[str]] = {
    "AlbertForMaskedLM": [*MASKED, *EMBEDDING],
    "AlbertForPreTraining": [*ORDER, *EMBEDDING],
    "BertForMaskedLM": MASKED,
    "BertForPreTraining": ORDER,
    "DistilBertForMaskedLM": MASKED,
    "ElectraForMaskedLM": [*MASKED, *EMBEDDING],
    "RobertaForMaskedLM": MASKED,
    "XLMRobertaForMaskedLM": MASKED,
    "LongformerForMaskedLM": [*MASKED, "model.settings.attention_window=8"],
    "BigBirdForMaskedLM": [*MASKED, "model.settings={block_size:4,num_random_blocks:1}"],
    "ReformerForMaskedLM": [*MASKED, f"model.settings={REFORMER}", "model.num_layers=null"],
    "GPT2LMHeadModel": [],
    "OpenAIGPTLMHeadModel": ["model.intermediate_size=null"],
    "BartForConditionalGeneration": ["objective=span_corruption"],
    "MBartForConditionalGeneration": ["objective=span_corruption"],
    "ResNetForImageClassification": [
        "objective=image_classification",
        "model.image_size=32",
        "model.settings={hidden_sizes:[8,16],depths:[1,2],embedding_size:8,layer_type:basic,hidden_act:gelu}",
    ],
}
CHOSEN = {name: OPTIMIZERS[name] for name in ("adamw", "lamb")}
PLACES = ("DDP x2", "ZeRO-1 x2", "ZeRO-2 x2", "ZeRO-3 x2")
STEPS = 20
SHAPES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")
# Of attention's keys: softmax does not change when all scores of a query do, so that their exact gradient is zero
KEY_BIASES = ("key.bias", "k_proj.bias", "k_lin.bias")
FUSED_BIAS = "attn.c_attn.bias"  # [queries, keys, values]
Case = tuple[str, str, str]  # optimizer, architecture, layout


def overrides(data: Path, folder: Path, case: Case) -> list[str]:
    """A model that normalizes over the batch has one micro-batch on each rank."""
    optimizer, architecture, layout = case
    is_text = architecture != "ResNetForImageClassification"
    whole = [] if is_text else [f"train.micro_batch_size={8 if layout == 'one' else 4}"]
    objective = [o for o in ARCHITECTURES[architecture] if o.startswith("objective=")]
    return [
        "model=hf_debug",
        *objective,
        *COMMON,
        *(["model.max_seq_len=32"] if is_text else [f"model.{key}=null" for key in SHAPES]),
        *whole,
        f"model.architecture={architecture}",
        *(o for o in ARCHITECTURES[architecture] if o not in objective),
        *CHOSEN[optimizer],
        *([] if layout == "one" else LAYOUTS[layout][1]),
        f"data.path={data / ('text' if is_text else 'images')}",
        f"run_dir={folder / '-'.join(case).replace(' ', '')}",
    ]


def is_proven(case: Case) -> bool:
    """Whether the table says that the layout equals one process: what it does not say is refused, and not run."""
    stages = [int(o.partition("=")[2]) for o in LAYOUTS[case[2]][1] if o.startswith("engine.zero_stage=")]
    return all(stage in KNOWN[case[1]].zero_stages for stage in stages)


def run_cases(world: Any, data: Path, folder: Path, cases: Sequence[Case]) -> None:
    usual = deepspeed._deepspeed_config

    def with_small_tensors_dealt(*arguments: Any) -> dict[str, Any]:
        config = usual(*arguments)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    deepspeed._deepspeed_config = with_small_tensors_dealt
    for case in cases:
        train_in_world(world, *overrides(data, folder, case))


def compare(cases: Sequence[Case], data: Path, folder: Path) -> dict[Case, Difference]:
    """One process for each optimizer and architecture, and all cases in one world of two ranks."""
    for optimizer, architecture in sorted({case[:2] for case in cases}):
        train_alone(*overrides(data, folder, (optimizer, architecture, "one")))
    run_world(2, run_cases, data, folder, list(cases), timeout=3600)
    return {case: difference(data, folder, case) for case in cases}


def difference(data: Path, folder: Path, case: Case) -> Difference:
    one, other = (Path(overrides(data, folder, c)[-1].removeprefix("run_dir=")) for c in ((*case[:2], "one"), case))
    expected, found = metrics(one), metrics(other)
    assert [line["batch_hash"] for line in expected.values()] == [line["batch_hash"] for line in found.values()]
    assert len(found) == STEPS
    loss = max(abs(found[step]["loss"] - expected[step]["loss"]) for step in expected)
    worst = max(_tensor_differences(finished_weights(one), finished_weights(other)))
    return Difference(loss, *worst)


def _tensor_differences(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[tuple[float, str]]:
    differences = []
    for name, a in expected.items():
        if not name.startswith("weights.") or name.endswith(KEY_BIASES):
            continue
        b = found[name]
        if name.endswith(FUSED_BIAS):
            a, b = (t.view(3, -1)[::2] for t in (a, b))
        distance = float((a - b).norm() / a.norm().clamp(min=1e-12))
        differences.append((distance, name.removeprefix("weights.")))
    return differences


def table(results: dict[Case, Difference], seconds: float) -> str:
    lines = [
        "# Parity of transformers' architectures",
        "",
        " ".join((__doc__ or "").strip().splitlines()[2:]),
        "",
        f"`make parity`: {len(results)} runs against one process, {seconds / 60:.0f} minutes on two CPU cores, "
        f"torch {torch.__version__.split('+')[0]}, gloo. Each cell: largest difference of the loss at any step "
        f"(bound {LOSS_BOUND:.0e}) / of any parameter tensor at step {STEPS}, relative to its norm (bound "
        f"{WEIGHT_BOUND:.0e}). The biases of attention's keys, whose exact gradient is zero, are left out "
        "of the second. ResNet has GELU here: with ReLU a rounding now and then puts a unit on the other "
        "side of 0, which makes another run.",
    ]
    for optimizer in CHOSEN:
        lines += ["", f"## {optimizer}", "", f"| architecture | {' | '.join(PLACES)} |"]
        lines.append("| --- " * (len(PLACES) + 1) + "|")
        for architecture in ARCHITECTURES:
            cells = [results.get((optimizer, architecture, layout)) for layout in PLACES]
            shown = [
                "refused" if d is None else f"{d.loss:.1e} / {d.weight:.1e}{'' if d.holds else ' **FAILS**'}"
                for d in cells
            ]
            lines.append(f"| `{architecture}` | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    began = time.time()
    every = itertools.product(CHOSEN, ARCHITECTURES, PLACES)
    cases = [case for case in every if is_proven(case)]
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder))
        results = compare(cases, data, Path(folder) / "runs")
    text = table(results, time.time() - began)
    print(text)
    for case, d in results.items():
        if not d.holds:
            print(f"{case}: loss {d.loss:.1e}, {d.tensor} {d.weight:.1e}")
    (ROOT / "docs" / "parity_adapter.md").write_text(text)
    return 0 if all(d.holds for d in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
