"""The adapter's architectures against one process: `make parity` runs all of it and writes docs/parity_adapter.md.

20 steps in fp32 with clipping, accumulation and tied weights, dropout 0; under ZeRO-3 the smallest tensors are dealt
out too.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretraining.engines import deepspeed
from pretraining.models.huggingface.architectures import KNOWN
from tests.distributed.comparison import Case, Difference, difference, finish, page, table
from tests.distributed.parity import COMMON, LAYOUTS, OPTIMIZERS, prepare_data
from tests.helpers import run_world, train_alone, train_in_world

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
REMARKS = (
    " The biases of attention's keys, whose exact gradient is zero, are left out of the second. ResNet has GELU here: "
    "with ReLU a rounding now and then puts a unit on the other side of 0, which makes another run."
)
SHAPES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")


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
    return {case: difference(overrides, data, folder, case) for case in cases}


def architectures_table(optimizer: str, results: Mapping[Case, Difference]) -> str:
    rows = {f"`{a}`": [results.get((optimizer, a, layout)) for layout in PLACES] for a in ARCHITECTURES}
    return table(optimizer, ["architecture", *PLACES], rows, "refused")


def main() -> int:
    began = time.time()
    every = itertools.product(CHOSEN, ARCHITECTURES, PLACES)
    cases = [case for case in every if is_proven(case)]
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder))
        results = compare(cases, data, Path(folder) / "runs")
    introduction = " ".join((__doc__ or "").strip().splitlines()[2:])
    text = page("Parity of transformers' architectures", introduction, REMARKS, results, time.time() - began)
    text += "".join(architectures_table(optimizer, results) for optimizer in CHOSEN)
    return finish(text, results, "parity_adapter.md")


if __name__ == "__main__":
    sys.exit(main())
