from types import SimpleNamespace

import numpy as np
import torch

from pretraining.labels import IGNORED
from pretraining.models.gpt.config import GPTConfig
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.causal_lm import CausalLM, CausalLMConfig, generate
from tests.building import build

TOKENIZER = SimpleNamespace(pad=0, bos=1, eos=2, fim_prefix=50, fim_middle=51, fim_suffix=52)
RNG = np.random.default_rng(0)


def objective(length=8, **options):
    return CausalLM(CausalLMConfig("causal_lm", **options), SampleSpec(seq_len=length, tokenizer=TOKENIZER))


def test_worked_example():
    """Two documents in one sequence: the end of the first predicts nothing, positions restart at 0."""
    sample = objective().corrupt([np.array([1, 7, 8, 2]), np.array([1, 9, 10])], RNG)
    assert sample["tokens"].tolist() == [1, 7, 8, 2, 1, 9]
    assert sample["labels"].tolist() == [7, 8, 2, IGNORED, 9, 10]
    assert sample["positions"].tolist() == [0, 1, 2, 3, 0, 1]
    assert sample["documents"].tolist() == [0, 0, 0, 0, 1, 1]
    batch = objective().collate([sample])
    assert batch["tokens"][0, 6:].tolist() == [0, 0] and batch["labels"][0, 6:].tolist() == [IGNORED] * 2
    assert objective().counts([sample, sample]) == {"causal_lm": 10} and objective().size(sample) == 6


def test_packed_documents_are_as_if_alone():
    """The loss of two packed documents is the sum of their losses: nothing crosses the border."""
    model = build(GPTConfig("gpt", 2, 32, 2, 8), 40)
    model.initialize(0)
    first, second = np.array([1, 7, 8, 2]), np.array([1, 9, 10, 11])

    def loss(*pieces, **options):
        task = objective(**options)
        batch = task.collate([task.corrupt([np.array(p) for p in pieces], RNG)])
        return task.loss(model, {k: torch.from_numpy(v) for k, v in batch.items()})["causal_lm"].item()

    packed = loss(first, second)
    assert abs(packed - loss(first) - loss(second)) < 1e-5
    assert abs(packed - loss(first, second, cross_document_attention=True)) > 1e-4


def test_a_model_that_diverged_writes_nothing():
    class Broken(torch.nn.Linear):
        def forward(self, tokens):
            return torch.full((1, tokens.shape[1], 4), torch.nan)

    model = Broken(1, 1)
    model.head = SimpleNamespace(logits=lambda hidden: hidden)
    assert generate(model, [1], 8, 2, seed=1) == [1]
