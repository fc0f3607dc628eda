"""BERT's relatives and others against one process: `make parity` runs all of it and writes docs/parity_relatives.md.

20 steps in fp32 with clipping and accumulation, dropout 0: AdamW under every layout, LAMB without tensor parallelism;
under ZeRO-3 the smallest tensors are dealt out too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.distributed import parity
from tests.distributed.comparison import Case, Difference, finish, page
from tests.distributed.parity import LAYOUTS, TEXT, compare, every_tensor_cut, prepare_data, tensor_parallel
from tests.helpers import ROOT, prepare

ENCODERS = {
    "roberta": [*TEXT, "model=roberta_debug", "objective=roberta"],
    "albert": [*TEXT, "model=albert_debug", "objective=albert", "model.embedding_size=20"],
    "macbert": [  # the data of these tests has no words of a segmenter
        *TEXT,
        "model=bert_debug",
        "objective=macbert",
        "objective.words=spelled",
        "objective.replacement=mask",
    ],
    "unilm": [*TEXT, "model=bert_debug", "model.segments=6", "objective=unilm"],
}
OTHERS = {
    "gpt1": [*TEXT, "model=gpt_debug", "model.norm_position=post"],
    "mixture": [*TEXT, "model=bert_debug", "objective=masked_lm", "objective.pairing=none"],
    "languages": [*TEXT, "model=t5_debug", "objective=denoising", "objective.language_tokens=true"],
    "xlm": [*TEXT, "model=bert_debug", "objective=translation_lm"],
}
EVERY = ENCODERS | OTHERS
REMARKS = (
    " The biases of attention's keys, whose exact gradient is zero, are left out of the second. `mixture` is BERT on "
    "two corpora at smoothed shares, `xlm` the same model on pairs of translations."
)
parity.RELATIVES |= EVERY
parity.KINDS |= {"mixture": "mixture", "languages": "languages", "xlm": "pairs"}


def run_cases(world: Any, data: Path, folder: Path, cases: Sequence[Case]) -> None:
    with every_tensor_cut():
        parity.run_cases(world, data, folder, cases)


def cases() -> list[Case]:
    alone = [layout for layout, (_, engine) in LAYOUTS.items() if tensor_parallel(engine) == 1]
    return [(o, f, layout) for f in EVERY for o, ls in (("adamw", LAYOUTS), ("lamb", alone)) for layout in ls]


def _prepare_more(data: Path) -> None:
    """Another folder with the tokenizer of text/, for a mixture of both; two whose tokenizer has their languages."""
    options = ("tokenizer.languages=[en_XX,de_DE]", "corpus.max_document_bytes=400", "num_workers=1")
    for name, text, ready, more in (
        ("more", "README.md", "text", options[1:]),
        ("en_XX", "README.md", "text", options),
        ("de_DE", "CONTRIBUTING.md", "en_XX", options[1:]),
    ):
        (data / f"{name}.txt").write_text((ROOT / text).read_text())
        given = (f"corpus.inputs=[{data / name}.txt]", f"tokenizer.path={data / ready / 'tokenizer'}")
        assert prepare(*given, f"output={data / name}", *more) == 0


def report(results: Mapping[Case, Difference], seconds: float) -> str:
    introduction = " ".join((__doc__ or "").strip().splitlines()[2:])
    head = page("Parity of BERT's relatives and others", introduction, REMARKS, results, seconds)
    return head + "".join(parity.layouts_table(optimizer, EVERY, results) for optimizer in ("adamw", "lamb"))


def main(names: Sequence[str]) -> int:
    """names: of the tables above, whose differences are printed alone; with none of them all, as a page of docs/."""
    began = time.time()
    wanted = [case for case in cases() if not names or case[1] in names]
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder))
        _prepare_more(data)
        results = compare(wanted, data, Path(folder) / "runs", run_cases)
    if not names:
        return finish(report(results, time.time() - began), results, "parity_relatives.md")
    for (optimizer, family, layout), d in results.items():
        print(f"{optimizer} {family:10} {layout:14} {d} {'' if d.holds else f'{d.tensor} FAILS'}")
    return 0 if all(d.holds for d in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
