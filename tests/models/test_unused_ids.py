"""Ids that an objective never uses: no share of the softmax, no gradient, rows of 0, whichever rank has them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretraining.labels import IGNORED
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.heads import attach_heads
from pretraining.models.loss import Rows, VocabularyLoss
from pretraining.models.registry import build_model
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import PlainLayers

USED = np.array([0, 1, 2, 5, 6, 9])
UNUSED = ((3, 5), (7, 9), (10, 12))


def test_the_loss_is_that_of_a_vocabulary_without_them():
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 4), torch.randn(16, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 5, 6, 9, IGNORED])
    loss = VocabularyLoss.apply(hidden, weight, None, labels, Rows(12, unused=UNUSED), 0.0)
    loss.backward()
    place = {int(i): n for n, i in enumerate(USED)}
    renamed = torch.tensor([place.get(int(i), IGNORED) for i in labels])
    expected = F.cross_entropy(hidden @ weight[USED].T, renamed, ignore_index=IGNORED, reduction="sum")
    assert float((loss - expected).detach()) == pytest.approx(0.0, abs=1e-5)
    assert not weight.grad[np.setdiff1d(np.arange(16), USED)].any() and weight.grad[USED].any(1).all()


@pytest.mark.parametrize("first", [0, 4, 8, 12])
def test_each_rank_leaves_out_its_own(first):
    whole = Rows(12, unused=UNUSED).without_unused(torch.zeros(2, 16))
    part = Rows(12, first, unused=UNUSED).without_unused(torch.zeros(2, 4))
    assert torch.equal(part, whole[:, first : first + 4])
    assert torch.equal(whole[0] == 0, torch.tensor(np.isin(np.arange(16), USED)))


class OnlyUsed:
    def heads(self, model, layers):
        return {"head": model.make_token_head(layers, used=USED)}


@pytest.mark.parametrize("tied", [True, False])
def test_their_rows_are_0_and_their_logits_never_win(tied):
    config = GPTConfig("gpt", 1, 16, 2, max_seq_len=8, tie_embeddings=tied)
    model = attach_heads(build_model(config, Vocabulary(12), PlainLayers()), OnlyUsed(), PlainLayers())
    model.initialize(1)
    for table in (model.token_embedding.weight, model.head.weight):
        assert table[USED].any(1).all() and not table[np.setdiff1d(np.arange(len(table)), USED)].any()
    logits = model.head.logits(torch.randn(3, 16))
    assert torch.equal(torch.isfinite(logits[0]), torch.tensor(np.isin(np.arange(12), USED)))
