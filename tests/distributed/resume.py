"""Resuming on four ranks, bit for bit: two ranks can't show in which order gradients are added, since a + b = b + a.

`make resume` runs every layout, `python -m tests.distributed.resume FAMILY ...` those of some families; `make test`
those that FEW names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.tokenizers.similar import encode_similar
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import TINY, finished_weights, metrics, prepare, run_world, train_in_world

RANKS, STEPS, STOP = 4, 6, 3
DEEPSPEED, MEGATRON = "engine=deepspeed", "engine=megatron"
UNSPLIT = {  # families that refuse tensor parallelism, and one more encoder-decoder
    "electra": ("model=electra_debug", "objective=replaced_token"),
    "transformer_xl": ("model=transformer_xl_debug", "objective=recurrent_lm", "objective.segment=4", "model.memory=8"),
    "xlnet": ("model=xlnet_debug", "objective=permutation_lm", "objective.warm=1", "model.max_seq_len=32"),
    "elmo": ("model=elmo_debug", "objective=bidirectional_lm", "objective.characters=10"),
    "bart": ("model=bart_debug", "objective=denoising"),
    "transformer": ("model=transformer_debug", "objective=span_corruption", "optimizer=adam"),
    "translation": ("model=transformer_debug", "objective=translation", "optimizer=adam"),
}
ENCODERS = {  # BERT's relatives, and GPT-2's predecessor
    "gpt1": ("model.norm_position=post",),
    "roberta": ("model=roberta_debug", "objective=roberta"),
    "albert": ("model=albert_debug", "objective=albert", "model.embedding_size=32", "optimizer=lamb"),
    "unilm": ("model=bert_debug", "objective=unilm", "model.segments=6"),
    # without a segmenter, which is an extra
    "macbert": ("model=bert_debug", "objective=macbert", "objective.words=spelled", "optimizer=lamb"),
    "mbert": ("model=bert_debug", "objective=masked_lm", "objective.pairing=none"),
    "xlm": ("model=bert_debug", "objective=translation_lm"),
}
DATA = {"translation": "pairs", "xlm": "pairs", "macbert": "similar", "mbert": "mixture"}  # where it is not the corpus
TWO = {"ddp": (), "zero2": (DEEPSPEED, "engine.zero_stage=2")}
LAYOUTS: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "shard_optimizer": ("engine.shard_optimizer=true",),
    **{f"zero{stage}": (DEEPSPEED, f"engine.zero_stage={stage}") for stage in range(4)},
    "tp2": (MEGATRON, "engine.tensor_parallel=2"),
    "tp2_sequence_parallel": (MEGATRON, "engine.tensor_parallel=2", "engine.sequence_parallel=true"),
    "tp2_shard_optimizer": (MEGATRON, "engine.tensor_parallel=2", "engine.shard_optimizer=true"),
    "tp4": (MEGATRON, "engine.tensor_parallel=4"),
    **{
        f"{family}_{layout}": (*options, *engine)
        for family, options in (UNSPLIT | ENCODERS).items()
        for layout, engine in TWO.items()
    },
    **{f"tp2_zero{s}": (DEEPSPEED, "engine.tensor_parallel=2", f"engine.zero_stage={s}") for s in range(4)},
}
FEW = ("ddp", "shard_optimizer", "zero1", "zero2", "zero3", "tp2")


def tensor_parallel(layout: str) -> int:
    return int(layout[2]) if layout.startswith("tp") else 1


def overrides(corpus: Path, run_dir: Path, layout: str, *more: str) -> list[str]:
    """Gradients of two megabytes: one bucket of DDP's holds less."""
    heads = [] if layout.startswith("elmo") else ["model.num_heads=4"]
    return [
        *(option for option in TINY if heads or not option.startswith("model.num_heads")),  # an LSTM has none
        "model.hidden_size=128",
        *heads,
        "model.max_seq_len=16",
        "model.dropout=0.1",
        *data_of(corpus, layout),
        f"run_dir={run_dir}",
        f"train.steps={STEPS}",
        "train.micro_batch_size=1",
        "scheduler=constant",
        *LAYOUTS[layout],
        *more,
    ]


def data_of(corpus: Path, layout: str) -> list[str]:
    """Of the corpus, or of what prepare_more laid beside it."""
    kind = DATA.get(layout.rpartition("_")[0], corpus.name)
    if kind == "mixture":
        return ["data=mixture", f"data.sources={{first: {corpus}, second: {corpus.parent / 'second'}}}"]
    return [f"data.path={corpus.parent / kind}"]


def prepare_more(corpus: Path) -> None:
    """Beside the corpus: pairs; second, of the same tokenizer; similar, which has a table of similar words."""
    place = corpus.parent
    lines = [f"{a} and {b}" for a in range(20) for b in range(20)]
    (place / "pairs.tsv").write_text("\n".join(f"{line}\t{line.upper()}" for line in lines))
    options = ("tokenizer.vocab_size=300", "num_workers=0")
    assert prepare("corpus=pairs", f"corpus.inputs=[{place}/pairs.tsv]", f"output={place}/pairs", *options) == 0
    (place / "second.jsonl").write_text("\n".join(json.dumps({"text": f"{n} more lines, " * 20}) for n in range(80)))
    options = (f"tokenizer.path={corpus}/tokenizer", "num_workers=0")
    assert prepare(f"corpus.inputs=[{place}/second.jsonl]", f"output={place}/second", *options) == 0
    shutil.copytree(corpus, place / "similar")
    pieces = [(i,) for i in Tokenizer.load(corpus / "tokenizer").pieces.values() if i > 260]
    table = {piece: pieces[n - 4 : n] for n, piece in enumerate(pieces) if n > 3}
    (place / "similar" / "tokenizer" / "similar.npz").write_bytes(encode_similar(table))
    manifest = json.loads((place / "similar" / "manifest.json").read_text())
    manifest["tokenizer"]["similar"] = hashlib.sha256(encode_similar(table)).hexdigest()
    (place / "similar" / "manifest.json").write_text(json.dumps(manifest))


def run_layouts(world: Any, corpus: Path, folder: Path, layouts: list[str]) -> None:
    """Each layout uninterrupted, and stopped and continued by an engine of its own."""
    for layout in layouts:
        train_in_world(world, *overrides(corpus, folder / layout, layout))
        train_in_world(world, *overrides(corpus, folder / f"{layout}-resumed", layout, f"train.steps={STOP}"))
        train_in_world(world, *overrides(corpus, folder / f"{layout}-resumed", layout))


def run(corpus: Path, folder: Path, layouts: list[str]) -> None:
    """All layouts of one tensor-parallel size share their processes."""
    for size in sorted({tensor_parallel(layout) for layout in layouts}):
        alike = [layout for layout in layouts if tensor_parallel(layout) == size]
        run_world(RANKS, run_layouts, corpus, folder, alike, tensor_parallel=size, timeout=900)


def differences(folder: Path, layout: str) -> list[str]:
    """In which steps' numbers, and in which tensors, the resumed run differs from the uninterrupted one."""
    whole, resumed = metrics(folder / layout), metrics(folder / f"{layout}-resumed")
    keys = ("loss", "grad_norm", "lr", "batch_hash")
    found = [f"step {s}" for s in whole if [whole[s][k] for k in keys] != [resumed[s][k] for k in keys]]
    expected = finished_weights(folder / layout)
    tensors = finished_weights(folder / f"{layout}-resumed")
    return found + [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])]


def main(families: Sequence[str]) -> int:
    """families: of UNSPLIT and ENCODERS; every layout where there is none."""
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place, "data")
        for number in range(8):
            lines = [f"line {n} of text {number}, which is there to be learned, {n * n}" for n in range(400)]
            Path(place, f"{number}.txt").write_text("\n".join(lines))
        if prepare("corpus=text", f"corpus.inputs=[{place}/*.txt]", f"output={corpus}", "tokenizer.vocab_size=400"):
            return 2
        prepare_more(corpus)
        for layout in (name for name in LAYOUTS if not families or name.rpartition("_")[0] in families):
            began = time.time()
            run(corpus, Path(place), [layout])
            found = differences(Path(place), layout)
            failed += bool(found)
            print(f"{layout:24} {'; '.join(found[:6]) or 'bit for bit'}  ({time.time() - began:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
