"""Samples of the objectives that batches.py does not run: drawn as a run draws them, without a model."""

from __future__ import annotations

from tests.golden import inner
from tests.golden.runs import TEXT, Data

KIND = "samples"
SHAPE = tuple(o for o in TEXT if o.startswith(("model.", "data.window")))
WITHOUT_HEADS = tuple(o for o in SHAPE if not o.startswith("model.num_heads"))
CASES: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> (data, overrides)
    "albert": ("text", ("model=albert_debug", "objective=albert")),
    "bidirectional_lm": ("text", ("model=elmo_debug", "objective=bidirectional_lm")),
    "denoising": ("text", ("model=transformer_debug", "objective=denoising")),
    "denoising, words, random, rotated": (
        "text",
        (
            "model=transformer_debug",
            "objective=denoising",
            "objective.rotated_documents=0.5",
            "objective.random_rate=0.1",
            "objective.whole_words=true",
        ),
    ),
    "denoising, delete": ("text", ("model=transformer_debug", "objective=denoising", "objective.noise=delete")),
    "macbert": ("similar", ("model=bert_debug", "objective=macbert", "objective.words=spelled")),
    "masked_lm, doc_sentences": (
        "text",
        ("model=roberta_debug", "objective=roberta", "model.max_seq_len=100", "objective.packing=doc_sentences"),
    ),
    "masked_lm, full_sentences": ("text", ("model=roberta_debug", "objective=roberta", "model.max_seq_len=100")),
    "mixture": ("mixture", ("model=bert_debug", "objective=masked_lm", "objective.pairing=none")),
    "permutation_lm": ("text", ("model=xlnet_debug", "objective=permutation_lm", "objective.warm=1")),
    "recurrent_lm": ("text", ("model=transformer_xl_debug", "objective=recurrent_lm", "objective.segment=8")),
    "replaced_token": ("text", ("model=electra_debug", "objective=replaced_token")),
    "translation": ("pairs", ("model=transformer_debug", "objective=translation")),
    "translation_lm": ("pairs", ("model=bert_debug", "objective=translation_lm")),
    "unilm": ("text", ("model=bert_debug", "objective=unilm", "model.segments=6")),
}


def compute(case: str, data: Data) -> dict[str, list[int]]:
    """-> batch_hash and tokens of each of the first three batches of 8."""
    kind, overrides = CASES[case]
    shape = WITHOUT_HEADS if "model=elmo_debug" in overrides else SHAPE
    return inner.samples([*shape, *overrides, *data.overrides(kind)], batches=3, size=8)
