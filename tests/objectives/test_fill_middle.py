"""Fill in the middle: rearranged at its rate, of the same length, and by hand."""

import numpy as np
import pytest

from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.causal_lm import CausalLM, CausalLMConfig, fill_middle

MARKS = (900, 901, 902)  # prefix, suffix, middle


class Fixed:
    def integers(self, low, high, count):
        assert (low, high, count) == (0, 11, 2)
        return np.array([7, 4])


def test_an_example_written_out_by_hand():
    # 0 1 2 3 | 4 5 6 | 7 8 9 and a suffix that is too short for the marks; then one that is long enough
    assert fill_middle(np.arange(10), MARKS, Fixed()).tolist() == list(range(10))
    Fixed.integers = lambda *_: np.array([4, 2])
    assert fill_middle(np.arange(10), MARKS, Fixed()).tolist() == [900, 0, 1, 901, 4, 5, 6, 902, 2, 3]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog\n" * 20], "bpe", 290)


def corrupt(tokenizer, rate, pieces, seed):
    config = CausalLMConfig(name="causal_lm", fim_rate=rate)
    objective = CausalLM(config, SampleSpec(seq_len=128, tokenizer=tokenizer))
    return objective.corrupt(pieces, np.random.default_rng(seed))


def test_the_rate_is_met_and_lengths_stay(tokenizer):
    piece = np.array([tokenizer.bos, *range(10, 110), tokenizer.eos])
    plain = corrupt(tokenizer, 0.0, [piece], 0)
    share = 0
    for seed in range(500):
        sample = corrupt(tokenizer, 0.5, [piece], seed)
        assert len(sample["tokens"]) == len(plain["tokens"]) and sample["tokens"][0] == tokenizer.bos
        assert sample["labels"][-1] == tokenizer.eos
        share += tokenizer.fim_middle in sample["tokens"]
    assert abs(share / 500 - 0.5 * 0.94) < 0.07  # a few have too short a suffix


def test_the_parts_make_the_document_without_its_last_tokens(tokenizer):
    for seed in range(50):
        tokens = corrupt(tokenizer, 1.0, [np.arange(10, 110)], seed)
        tokens = [*tokens["tokens"].tolist(), int(tokens["labels"][-1])]
        if tokenizer.fim_middle in tokens:
            suffix, middle = tokens.index(tokenizer.fim_suffix), tokens.index(tokenizer.fim_middle)
            whole = tokens[1:suffix] + tokens[middle + 1 :] + tokens[suffix + 1 : middle]
            assert whole == list(range(10, 107))


@pytest.mark.parametrize("same", [False, True])
def test_segments_of_any_length_keep_it(tokenizer, same, monkeypatch):
    eos = tokenizer.bos if same else tokenizer.eos  # a published tokenizer may have one token for both
    config = CausalLMConfig(name="causal_lm", fim_rate=1.0)
    objective = CausalLM(config, SampleSpec(seq_len=128, tokenizer=tokenizer))
    objective.eos = eos
    for count in range(8):
        whole = [tokenizer.bos, *range(10, 10 + count), eos]
        for segment in (whole, whole[1:], whole[:-1], whole[-1:]):
            sample = objective.corrupt([np.array([5]), np.array(segment or [5])], np.random.default_rng(count))
            assert len(sample["tokens"]) == max(1, len(segment)), segment


def test_without_a_rate_the_generator_is_not_touched(tokenizer):
    rng = np.random.default_rng(0)
    spec = SampleSpec(seq_len=128, tokenizer=tokenizer)
    CausalLM(CausalLMConfig(name="causal_lm"), spec).corrupt([np.arange(10, 50)], rng)
    assert rng.random() == np.random.default_rng(0).random()
