"""Every optimizer, family and layout against one process: `make parity` runs all of it and writes docs/parity.md.

20 steps in fp32 with clipping, accumulation, tied weights, uneven shapes and frozen parameters, dropout 0.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from tests.distributed.comparison import HEADS, STEPS, Case, Difference, difference, finish, page, table
from tests.helpers import prepare, run_world, train_alone, train_in_world
from tests.images import prepare_images, write_digits

COMMON = [
    f"train.steps={STEPS}",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.grad_clip=0.5",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler.warmup_steps=3",
    "tracking.wandb=disabled",
    "data.num_workers=0",
    "model.num_layers=2",
    "model.hidden_size=36",
    f"model.num_heads={HEADS}",
    "model.intermediate_size=52",
    "model.dropout=0.0",
]
OPTIMIZERS = {
    "adamw": ["optimizer=adamw", "optimizer.lr=2e-3", "optimizer.eps=1e-6"],
    "lamb": ["optimizer=lamb", "optimizer.lr=5e-3"],
    "adafactor": ["optimizer=adafactor", "optimizer.lr=1e-2", "optimizer.eps=[1e-12,1e-3]"],  # of squares
}
TEXT = ["model.max_seq_len=32"]
FAMILIES = {
    "bert": [*TEXT, "model=bert_debug", "objective=masked_lm", "train.freeze=['position_embedding.*']"],
    "gpt": [*TEXT, "model=gpt_debug", "train.freeze=['blocks.0.mlp_norm.*']"],
    "t5": [
        *TEXT,
        "model=t5_debug",
        "objective=span_corruption",
        "model.tie_embeddings=true",
        "model.head_dim=14",
        "train.freeze=['encoder.blocks.0.mlp.up.weight']",
    ],
    "vit": [
        "model=vit_debug",
        "objective=image_classification",
        "model.pooling=mean",
        "train.freeze=['encoder.patch_embedding.*']",
    ],
}
# In both of the tables below: all layouts with AdamW, those without tensor parallelism with LAMB
TRANSFORMER = [*TEXT, "model=transformer_debug", "objective=translation", "objective.targets_length=40"]
RELATIVES = {  # options of a family, and a relative: under tensor parallelism with AdamW
    "llama": [
        *TEXT,
        "model=gpt_debug",
        "model.hidden_size=48",
        "model.positions=rotary",
        "model.norm=rmsnorm",
        "model.activation=swiglu",
        "model.bias=false",
        "model.tie_embeddings=false",
        "model.num_kv_heads=4",
        "model.num_heads=8",
    ],
    "mae": ["model=mae_debug", "objective=masked_image", "model.decoder_num_heads=4"],
    "transformer": TRANSFORMER,
}
UNSPLIT = {  # families that refuse tensor parallelism: under every other layout, with AdamW and LAMB
    "electra": [
        *TEXT,
        "model=electra_debug",
        "objective=replaced_token",
        "model.embedding_size=20",
        "model.generator_hidden_size=24",
        "model.generator_num_heads=4",
    ],
    "transformer_xl": [
        *TEXT,
        "model=transformer_xl_debug",
        "objective=recurrent_lm",
        "objective.segment=8",
        "model.memory=12",
    ],
    "bart": [*TEXT, "model=bart_debug", "objective=denoising"],
    "transformer": TRANSFORMER,
    "elmo": ["model.max_seq_len=16", "model=elmo_debug", "objective=bidirectional_lm", "objective.characters=10"],
    "xlnet": [*TEXT, "model=xlnet_debug", "objective=permutation_lm", "objective.warm=1", "model.memory=12"],
}
NO_LSTM_HAS = ("model.num_heads", "model.intermediate_size")
KINDS = {"vit": "images", "mae": "images", "transformer": "pairs"}  # of prepared data, where it is not text
MIXTURES = {"mixture": ("text", "more"), "languages": ("en_XX", "de_DE")}
LAYOUTS = {  # name -> (ranks, overrides)
    "DDP x2": (2, ["engine=torch"]),
    "ZeRO-1 x2": (2, ["engine=deepspeed", "engine.zero_stage=1"]),
    "ZeRO-2 x2": (2, ["engine=deepspeed", "engine.zero_stage=2"]),
    "ZeRO-3 x2": (2, ["engine=deepspeed", "engine.zero_stage=3"]),
    "TP2": (2, ["engine=megatron", "engine.tensor_parallel=2"]),
    "TP2 + SP": (2, ["engine=megatron", "engine.tensor_parallel=2", "engine.sequence_parallel=true"]),
    "TP4": (4, ["engine=megatron", "engine.tensor_parallel=4"]),
    "TP4 + SP": (4, ["engine=megatron", "engine.tensor_parallel=4", "engine.sequence_parallel=true"]),
    "TP2 x DP2": (4, ["engine=megatron", "engine.tensor_parallel=2", "engine.shard_optimizer=true"]),
    "TP2 x ZeRO-1": (4, ["engine=deepspeed", "engine.tensor_parallel=2", "engine.zero_stage=1"]),
    "TP2 x ZeRO-2": (4, ["engine=deepspeed", "engine.tensor_parallel=2", "engine.zero_stage=2"]),
    "TP2 x ZeRO-3": (4, ["engine=deepspeed", "engine.tensor_parallel=2", "engine.zero_stage=3"]),
}
LEFT_OUT = """Left out of the second figure, and nothing else: the bias of attention keys (`attention.key.bias`, BART's
`attn.k_proj.bias`, the key rows of GPT's `attention.qkv.bias`). Softmax does not change when all scores of a query grow
alike, so its exact gradient is zero and optimizers that normalize it amplify rounding. For the same reason
epsilon is 1e-6 in AdamW and LAMB, and 1e-12, its square, in Adafactor: with the published 1e-30 the noise of those key
rows reaches the clipping of GPT's whole `attention.qkv.bias`. ViT is pooled by the mean, since 17 tokens do not divide
by 2 under sequence parallelism."""


def overrides(data: Path, folder: Path, case: Case) -> list[str]:
    optimizer, family, layout = case
    every = FAMILIES | RELATIVES | UNSPLIT
    kind = KINDS.get(family, "text")
    given = [f"data.path={data / kind}"]
    if kind in MIXTURES:
        sources = ", ".join(f"{name}: {data / name}" for name in MIXTURES[kind])
        given = ["data=mixture", f"data.sources={{{sources}}}", "data.smoothing=0.5"]
    group = [o for o in every[family] if o.split("=")[0] in ("model", "objective")]
    rest = [o for o in every[family] if o not in group]
    engine = [] if layout == "one" else LAYOUTS[layout][1]
    common = [o for o in COMMON if family != "elmo" or not o.startswith(NO_LSTM_HAS)]
    return [
        *group,
        *common,
        *rest,
        *OPTIMIZERS[optimizer],
        *engine,
        *given,
        f"run_dir={folder / '-'.join(case).replace(' ', '')}",
    ]


def prepare_data(folder: Path) -> Path:
    """-> a folder with text/, pairs/ and images/."""
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    files = ",".join(str(library / f"{m}.py") for m in ("argparse", "ast", "enum", "inspect", "typing"))
    assert (
        prepare(
            f"corpus.inputs=[{files}]",
            f"output={folder / 'text'}",
            "tokenizer.vocab_size=400",
            "valid_fraction=0.1",
            "num_workers=1",
            "corpus.max_document_bytes=8192",
        )
        == 0
    )
    lines = [line.strip() for m in ("argparse", "ast") for line in (library / f"{m}.py").read_text().splitlines()]
    (folder / "pairs.tsv").write_text("\n".join(f"{line}\t{line.upper()}" for line in lines if line))
    assert (
        prepare(
            "corpus=pairs",
            f"corpus.inputs=[{folder / 'pairs.tsv'}]",
            f"output={folder / 'pairs'}",
            "tokenizer.vocab_size=400",
            "num_workers=1",
        )
        == 0
    )
    assert prepare_images(write_digits(folder / "digits", count=200), folder / "images", "valid_fraction=0.1") == 0
    return folder


def run_cases(world: Any, data: Path, folder: Path, cases: Sequence[Case]) -> None:
    for case in cases:
        with every_tensor_cut() if case[1] in UNSPLIT else contextlib.nullcontext():
            train_in_world(world, *overrides(data, folder, case))


@contextlib.contextmanager
def every_tensor_cut() -> Iterator[None]:
    """ZeRO 3 cuts every tensor: by default it leaves those of fewer than 100,000 elements whole, all that there are
    here."""
    from pretraining.engines import deepspeed

    made = deepspeed._deepspeed_config

    def config(*arguments: Any) -> dict[str, Any]:
        found = made(*arguments)
        at_once = ("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")
        found["zero_optimization"] |= dict.fromkeys(("stage3_param_persistence_threshold", *at_once), 0)
        return found

    with mock.patch.object(deepspeed, "_deepspeed_config", config):
        yield


def compare(
    cases: Sequence[Case], data: Path, folder: Path, run: Callable[..., None] = run_cases
) -> dict[Case, Difference]:
    """Runs one process for each optimizer and family, and every case, layouts of equal size in one world each."""
    for optimizer, family in sorted({case[:2] for case in cases}):
        train_alone(*overrides(data, folder, (optimizer, family, "one")))
    for (ranks, split, _), group in itertools.groupby(sorted(cases, key=_world), key=_world):
        run_world(ranks, run, data, folder, list(group), tensor_parallel=split, timeout=1200)
    return {case: difference(overrides, data, folder, case) for case in cases}


def _world(case: Case) -> tuple[int, int, str]:
    """Ranks, tensor-parallel size and engine: cases that agree in them can follow one another in one world."""
    ranks, engine = LAYOUTS[case[2]]
    return ranks, tensor_parallel(engine), engine[0]


def tensor_parallel(engine: Sequence[str]) -> int:
    return next((int(o.split("=")[1]) for o in engine if o.startswith("engine.tensor_parallel=")), 1)


def layouts_table(optimizer: str, families: Collection[str], results: Mapping[Case, Difference]) -> str:
    """Layouts as rows; as columns those of the families of which a case was run."""
    shown = [f for f in families if any(case[:2] == (optimizer, f) for case in results)]
    rows = {layout: [results.get((optimizer, family, layout)) for family in shown] for layout in LAYOUTS}
    return table(optimizer, ["layout", *shown], rows, "-")


def cases() -> list[Case]:
    """MAE's 17 tokens do not divide under sequence parallelism: it is refused."""
    split = [layout for layout, (_, engine) in LAYOUTS.items() if tensor_parallel(engine) > 1]
    relatives = [
        ("adamw", family, layout)
        for family, layout in itertools.product(RELATIVES, split)
        if (family, "SP") != ("mae", layout[-2:])
    ]
    unsplit = itertools.product(("adamw", "lamb"), UNSPLIT, (layout for layout in LAYOUTS if layout not in split))
    return [*itertools.product(OPTIMIZERS, FAMILIES, LAYOUTS), *relatives, *unsplit]


def main() -> int:
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder))
        results = compare(cases(), data, Path(folder) / "runs")
    introduction = (__doc__ or "").strip().splitlines()[-1]
    text = page("Parity of the layouts", introduction, f"\n\n{LEFT_OUT}", results, time.time() - began)
    text += "".join(layouts_table(optimizer, FAMILIES | RELATIVES | UNSPLIT, results) for optimizer in OPTIMIZERS)
    return finish(text, results, "parity.md")


if __name__ == "__main__":
    sys.exit(main())
