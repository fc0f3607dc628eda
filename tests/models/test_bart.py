"""BART through the adapter: sizes, and the loss of denoising beside transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.bart.modeling_bart import shift_tokens_right

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import load_config
from pretraining.labels import IGNORED
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.shapes import MetaLayers
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.sequence.denoising import Denoising, DenoisingConfig
from pretraining.parallel.layers import PlainLayers

IDS = {role: n for n, role in enumerate(("pad", "bos", "eos", "unk", "mask", "cls", "sep"))}
# With the vocabularies of the released checkpoints; mBART's paper says 680M, which its own checkpoint does not have
PUBLISHED = {
    "bart_base": (50_265, 139_420_416),
    "bart_large": (50_265, 406_291_456),
    "mbart_large": (250_027, 610_851_840),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    size, parameters = PUBLISHED[preset]
    config, layers = load_config([f"model={preset}", "objective=denoising", "data.path=x"]).model, MetaLayers()
    model: Any = build_model(config, Vocabulary(size, IDS), layers)
    model.head = model.make_token_head(layers)
    assert model.published_parameters() == parameters


def test_the_loss_is_that_of_transformers_for_each_document() -> None:
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog\n" * 20], "bpe", 300)
    objective = Denoising(DenoisingConfig("denoising"), SampleSpec(seq_len=32, tokenizer=tokenizer))
    config = load_config(["model=bart_debug", "objective=denoising", "model.max_seq_len=32", "data.path=x"]).model
    layers = PlainLayers()
    vocabulary = Vocabulary(tokenizer.total_size, tokenizer.special_ids)
    model: Any = attach_heads(build_model(config, vocabulary, layers), objective, layers)
    model.initialize(1)
    model.eval()
    texts = [np.array(tokenizer.encode(t)) for t in ("the lazy dog", "the quick brown fox jumps over", "fox")]
    rng = np.random.default_rng(0)
    samples = [objective.corrupt([TokenizedDocument(t, np.array([0]))], rng) for t in texts]
    batch = {name: torch.from_numpy(array) for name, array in objective.collate(samples).items()}
    network, used, expected = model.network, torch.from_numpy(objective.used_ids()), 0.0
    assert network.config.decoder_start_token_id == tokenizer.eos
    for sample in samples:
        labels = torch.from_numpy(sample["labels"])[None]
        shifted = shift_tokens_right(labels, tokenizer.pad, tokenizer.eos)
        assert shifted[0].tolist() == sample["decoder_inputs"].tolist()
        with torch.no_grad():
            logits = network(input_ids=torch.from_numpy(sample["inputs"])[None], decoder_input_ids=shifted).logits
        # those that are never used take no part in ours
        renamed = torch.searchsorted(used, labels[0])
        expected += torch.nn.functional.cross_entropy(logits[0][:, used], renamed, reduction="sum").item()
    with torch.no_grad():
        found = objective.loss(model, batch)["denoising"].item()
    assert (batch["labels"] != IGNORED).sum() == sum(len(s["labels"]) for s in samples)
    assert found == pytest.approx(expected, rel=1e-5)
