from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader, TokenizedDocument
from data_pipeline.stream.sentence_packing import Pairing, PairPart
from data_pipeline.stream.stream import Position, Stream
from data_pipeline.tokenizers.tokenizer import Tokenizer
from data_pipeline.tokenizers.words import WordPieces
from pretraining.labels import IGNORED
from pretraining.models.bert.config import BertConfig
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.text.masked_lm import MaskedLM, MaskedLMConfig
from pretraining.objectives.text.masking import albert_law, choose, find_words, ngram_lengths, replace
from pretraining.objectives.text.sentence_pairs import next_sentence, sentence_order, truncate
from tests.building import build

PAD, UNK, CLS, SEP, MASK = 0, 3, 101, 102, 100
IS_TEXT = np.arange(105) % 100 > 3
TOKENIZER = SimpleNamespace(
    pad=PAD,
    cls=CLS,
    sep=SEP,
    mask=MASK,
    is_text=IS_TEXT,
    words=WordPieces(~IS_TEXT | (np.arange(105) % 3 == 0), ~IS_TEXT),
)
ALWAYS = np.ones(1000, bool)


def objective(length=64, tokenizer=TOKENIZER, **options):
    return MaskedLM(MaskedLMConfig("masked_lm", **options), SampleSpec(seq_len=length, tokenizer=tokenizer))


def document(lengths, first=4):
    """Sentences of these lengths, the tokens counted up from `first`."""
    return TokenizedDocument(np.arange(first, first + sum(lengths), dtype=np.uint16), np.cumsum([0, *lengths[:-1]]))


class Scripted:
    """A generator that draws what it was told, in order."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def _next(self, *_):
        return np.array(self.draws.pop(0))

    random = permutation = choice = _next


def test_worked_example():
    """Two sentences of 7 and 6 tokens, swapped. 15% of 16 are 2: the first word in the drawn order is masked, the
    second, next to it, becomes a random token."""
    rng = Scripted(7, 0.1, [5, 4, *range(4), *range(6, 13)], [0.79, 0.85], [44, 55])
    task = objective(20, pairing="sentence_order")
    sample = task.corrupt([document([7, 6], first=10)], rng)
    #                                     0    1   2   3   4     5   6   7    8 ...
    assert sample["tokens"].tolist() == [CLS, 17, 18, 19, 20, MASK, 55, SEP, 10, 11, 12, 13, 14, 15, 16, SEP]
    assert sample["masked_positions"].tolist() == [5, 6] and sample["labels"].tolist() == [21, 22]
    assert sample["segments"].tolist() == [0] * 8 + [1] * 8
    assert sample["positions"].tolist() == list(range(16)) and sample["pair_label"] == 1
    assert task.size(sample) == 16 and task.counts([sample, sample]) == {"masked_lm": 4, "sentence_order": 2}
    batch = task.collate([sample, sample])
    assert batch["tokens"].shape == (2, 20) and batch["tokens"][0, 16:].tolist() == [PAD] * 4
    assert batch["documents"][0].tolist() == [0] * 16 + [-1] * 4
    assert batch["masked_positions"].tolist() == [[5, 6, 0]] * 2  # 15% of 20 are 3
    assert batch["labels"].tolist() == [[21, 22, IGNORED]] * 2 and batch["pair_labels"].tolist() == [1, 1]


def test_packed_worked_example():
    """The end of one document, a whole one, the beginning of a third: each gets both of its ends."""
    task = objective(16, pairing="none")
    pieces = [np.array([50, 51, SEP]), np.array([CLS, 60, 61, 62, SEP]), np.array([CLS, 70, 71])]
    sample = task.corrupt(pieces, generator(1, Purpose.CORRUPTION, 3))
    tokens = sample["tokens"].copy()
    tokens[sample["masked_positions"]] = sample["labels"]
    assert tokens.tolist() == [CLS, 50, 51, SEP, CLS, 60, 61, 62, SEP, CLS, 70, 71, SEP]
    assert sample["documents"].tolist() == [0] * 4 + [1] * 5 + [2] * 4
    assert sample["positions"].tolist() == [*range(4), *range(5), *range(4)]
    assert len(sample["labels"]) == 2 and list(task.terms) == ["masked_lm"]
    alone = task.corrupt([np.array([SEP]), np.array([CLS, 60, 61])], generator(1, Purpose.CORRUPTION, 3))
    assert len(alone["tokens"]) == 4  # a lone end is left out


def test_full_sentences_worked_example():
    """A separator between two documents, positions that run on, and attention across."""
    task = objective(16, pairing="none", packing="full_sentences")
    sample = task.corrupt([np.array([50, 51]), np.array([60, 61, 62])], generator(1, Purpose.CORRUPTION, 3))
    tokens = sample["tokens"].copy()
    tokens[sample["masked_positions"]] = sample["labels"]
    assert tokens.tolist() == [CLS, 50, 51, SEP, 60, 61, 62, SEP]
    assert sample["documents"].tolist() == [0] * 8 and sample["positions"].tolist() == list(range(8))


def test_doc_sentences_are_framed_one_by_one():
    task = objective(16, pairing="none", packing="doc_sentences")
    sample = task.corrupt([np.array([50, 51]), np.array([60, 61, 62])], generator(1, Purpose.CORRUPTION, 3))
    assert sample["documents"].tolist() == [0] * 4 + [1] * 5
    assert sample["tokens"][[0, 3, 4, 8]].tolist() == [CLS, SEP, CLS, SEP]


@pytest.mark.parametrize("packing", ["doc_sentences", "full_sentences"])
def test_whole_sentences_of_real_text(corpus, tokenizer, packing):
    """Full sequences, as good as: what is left is shorter than a sentence. None is longer than the model reads."""
    task = objective(64, tokenizer, pairing="none", packing=packing)
    found = samples(corpus, task, 200)
    sizes = np.array([len(s["tokens"]) for s in found])
    assert sizes.max() <= 64 and sizes.mean() > 50


@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram"])
def test_rates(masking):
    """15% of the tokens; of those 80% masked, 10% random, 10% kept; never a special token."""
    task, rng = objective(512, masking=masking), np.random.default_rng(1)
    special = tokens_total = chosen = masked = kept = 0
    seen, randoms = np.zeros(512), []
    for _ in range(400):
        tokens = rng.choice(105, 512)  # special ids anywhere
        sample = task._masked(tokens, rng)
        positions, now = sample["masked_positions"], sample["tokens"][sample["masked_positions"]]
        assert np.all(np.diff(positions) > 0) and np.array_equal(sample["labels"], tokens[positions])
        assert np.array_equal(np.delete(sample["tokens"], positions), np.delete(tokens, positions))
        special += int((~IS_TEXT[tokens[positions]]).sum())
        tokens_total += len(tokens)
        chosen += len(positions)
        masked += int((now == MASK).sum())
        kept += int((now == sample["labels"]).sum())
        randoms.append(now[(now != MASK) & (now != sample["labels"])])
        seen[positions] += 1
    drawn = np.concatenate(randoms)
    assert special == 0 and IS_TEXT[drawn].all() and len(np.unique(drawn)) == IS_TEXT.sum()
    assert chosen / tokens_total == pytest.approx(0.15, abs=0.002)
    assert masked / chosen == pytest.approx(0.8, abs=0.01)
    assert len(drawn) / chosen == pytest.approx(0.1 * (1 - 1 / IS_TEXT.sum()), abs=0.008)
    assert kept / chosen == pytest.approx(0.1, abs=0.008)
    assert seen[:256].sum() == pytest.approx(seen[256:].sum(), rel=0.05)


def test_whole_words_are_whole():
    rng = np.random.default_rng(2)
    for _ in range(200):
        tokens = rng.choice(105, 128)
        words = find_words(IS_TEXT[tokens], TOKENIZER.words.starts(tokens))
        positions = choose(words, 15, albert_law(1), rng)
        inside = np.isin(np.arange(128), positions)
        for start, stop in zip(words.starts, words.stops, strict=True):
            assert inside[start:stop].all() or not inside[start:stop].any()
        assert len(positions) <= 15


def test_words_of_text():
    maskable = np.array([0, 1, 1, 1, 1, 0, 1, 1], bool)
    begins = np.array([1, 0, 0, 1, 1, 1, 0, 0], bool)
    words = find_words(maskable, begins)
    assert words.starts.tolist() == [1, 3, 4, 6] and words.stops.tolist() == [3, 4, 5, 8]
    assert words.run.tolist() == [3, 2, 1, 1]
    nothing = find_words(np.zeros(3, bool), np.ones(3, bool))
    assert len(nothing.starts) == 0 and len(choose(nothing, 1, albert_law(3), np.random.default_rng(0))) == 0


def test_ngram_lengths_are_inversely_proportional():
    """6/11, 3/11, 2/11 for up to three words; 2/3, 1/3 where only two are left."""
    rng = np.random.default_rng(3)
    law = albert_law(3)
    three, two = ngram_lengths(np.full(60000, 3), law, rng), ngram_lengths(np.tile([2, 3], 30000), law, rng)[::2]
    assert np.bincount(three)[1:] / 60000 == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)
    assert np.bincount(two)[1:] / 30000 == pytest.approx([2 / 3, 1 / 3], abs=0.01)


def test_ngrams_stay_within_their_run_and_the_budget():
    rng = np.random.default_rng(4)
    maskable = np.tile([True] * 4 + [False], 40)
    lengths = []
    for _ in range(300):
        positions = choose(find_words(maskable, ALWAYS[:200]), 24, albert_law(3), rng)
        assert len(positions) == 24 and maskable[positions].all()
        lengths += [len(run) for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)]
    assert max(lengths) <= 4 and np.mean(lengths) > 1.3  # two n-grams may touch


def published_ngrams(tokens, budget, rng):
    """google-research/albert, create_pretraining_data.py, create_masked_lm_predictions, of words of one token without
    a [SEP] between: positions."""
    weights = 1.0 / np.arange(1, 4)
    weights /= weights.sum()
    ngrams = [[list(range(i, min(i + n, tokens))) for n in (1, 2, 3)] for i in range(tokens)]
    rng.shuffle(ngrams)
    covered: set[int] = set()
    for ngram in ngrams:
        if len(covered) >= budget:
            break
        n = int(rng.choice([1, 2, 3], p=weights))
        while n > 1 and len(covered) + len(ngram[n - 1]) > budget:
            n -= 1
        chosen = ngram[n - 1]
        if len(covered) + len(chosen) <= budget and not covered & set(chosen):
            covered |= set(chosen)
    return np.sort(list(covered))


def test_ngrams_are_placed_as_published():
    ours, theirs = np.zeros(6), np.zeros(6)
    words = find_words(ALWAYS[:126], ALWAYS[:126])
    for seed in range(1500):
        for counts, positions in (
            (ours, choose(words, 19, albert_law(3), np.random.default_rng(seed))),
            (theirs, published_ngrams(126, 19, np.random.default_rng(seed + 5000))),
        ):
            assert len(positions) == 19
            runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
            counts += np.bincount([min(len(run), 5) for run in runs], minlength=6)
    assert ours / ours.sum() == pytest.approx(theirs / theirs.sum(), abs=0.012)


def test_replace_takes_its_shares_from_the_first_draw():
    tokens = np.arange(10, 16)
    out = replace(tokens, np.array([0, 2, 4]), MASK, np.array([7]), Scripted([0.79, 0.89, 0.91], [7, 7, 7]))
    assert out.tolist() == [MASK, 11, 7, 13, 14, 15] and tokens[0] == 10


def part(tokens, pairing=Pairing.NONE):
    return PairPart(np.asarray(tokens), pairing)


def test_next_sentence_takes_the_packings_word_for_it():
    rng, tokens = np.random.default_rng(5), np.arange(30)
    for pairing, label in ((Pairing.CONTINUATION, 0), (Pairing.RANDOM, 1), (Pairing.NONE, IGNORED)):
        first, second, found = next_sentence([part(tokens), part(tokens[:9], pairing)], 100, rng)
        assert found == label and np.array_equal(first, tokens) and np.array_equal(second, tokens[:9])
    first, second, found = next_sentence([part(tokens)], 20, rng)
    assert found == IGNORED and (len(first), len(second)) == (20, 0)
    first, second, _ = next_sentence([part(tokens), part(tokens, Pairing.RANDOM)], 20, rng)
    assert (len(first), len(second)) == (10, 10)


def published_predictions(tokens):
    """create_masked_lm_predictions: of all tokens, [cls] and [sep] counted."""
    return max(1, round(tokens * 0.15))


@pytest.mark.parametrize("length, predictions", [(128, 19), (512, 77)])
def test_as_many_predictions_as_published(length, predictions):
    rng, task = np.random.default_rng(11), objective(length)
    for first, second in ((length, length), (30, 20), (3, 2), (1, 1)):
        sample = task.corrupt([part(rng.integers(4, 100, n)) for n in (first, second)], rng)
        assert len(sample["labels"]) == published_predictions(len(sample["tokens"]))
    assert task.max_predictions == published_predictions(length) == predictions


def test_a_single_sentence_has_no_order():
    rng, task = np.random.default_rng(6), objective(pairing="sentence_order")
    single = document([9], first=4)
    assert sentence_order(single, 20, rng).label == IGNORED
    sample = task.corrupt([single], rng)
    assert (sample["segments"] == 0).all() and task.counts([sample])["sentence_order"] == 0


def test_sentence_order_swaps_half_of_the_time():
    rng, labels = np.random.default_rng(7), []
    for _ in range(2000):
        first, second, label = sentence_order(document([5] * 4, first=0), 100, rng)
        labels.append(label)
        whole = [second, first] if label else [first, second]
        assert np.array_equal(np.concatenate(whole), np.arange(20))
    assert np.mean(labels) == pytest.approx(0.5, abs=0.04)


def test_truncation_takes_from_the_longer_one_front_or_back():
    rng, fronts = np.random.default_rng(8), []
    for _ in range(2000):
        first, second = truncate(np.arange(30), np.arange(100, 112), 32, rng)
        assert len(first) == 20 and len(second) == 12
        assert np.array_equal(first, np.arange(first[0], first[0] + 20))
        fronts.append(first[0])
    assert np.mean(fronts) == pytest.approx(5, abs=0.2)  # ten are taken, each from the front half of the time
    first, second = truncate(np.arange(30), np.arange(40), 20, rng)
    assert (len(first), len(second)) == (10, 10)
    # 3 + 3 -> 4: first the second (equal) loses its front, then the first its back
    first, second = truncate(np.array([1, 2, 3]), np.array([4, 5, 6]), 4, Scripted(0.2, 0.7))
    assert first.tolist() == [1, 2] and second.tolist() == [5, 6]


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return Tokenizer.load(corpus / "tokenizer")


def samples(corpus, task, count, epoch=0):
    stream = Stream(TextReader(load_manifest(corpus), "train"), task.packing(), 1, window_blocks=8)
    feed = stream.sequences(Position(epoch=epoch))
    return [task.corrupt(next(feed)[0], generator(1, Purpose.CORRUPTION, epoch, n)) for n in range(count)]


@pytest.mark.parametrize("pairing", ["next_sentence", "sentence_order", "none"])
def test_real_text(corpus, tokenizer, pairing):
    """Rates on a corpus; a pure function of the generator; another mask in another epoch."""
    task = objective(64, tokenizer, masking="ngram", pairing=pairing)
    found, again = samples(corpus, task, 300), samples(corpus, task, 300)
    for one, two in zip(found, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
        assert len(one["tokens"]) <= 64 and tokenizer.is_text[one["labels"]].all()
        assert len(one["labels"]) <= task.max_predictions
        for name in ("segments", "positions", "documents"):
            assert len(one[name]) == len(one["tokens"])
    assert sum(len(s["labels"]) for s in found) / sum(len(s["tokens"]) for s in found) == pytest.approx(0.15, abs=0.01)
    if pairing != "none":
        labels = [int(s["pair_label"]) for s in found if s["pair_label"] != IGNORED]
        assert np.mean(labels) == pytest.approx(0.5, abs=0.1) and len(labels) > 250


def test_words_of_a_trained_tokenizer(tokenizer):
    text = "for key, value in some_mapping.items():\n    print(naïve_ümlaut, '中文字')\n"
    ids = np.array(tokenizer.encode(text))
    cuts = np.flatnonzero(tokenizer.words.starts(ids))
    words = [tokenizer.decode(part) for part in np.split(ids, cuts[1:])]
    assert "".join(words) == text
    stripped = [word.strip() for word in words]
    assert {"key", "some_mapping", "naïve_ümlaut"} <= set(stripped) and not any(" " in word for word in stripped)
    assert tokenizer.words.begins[[tokenizer.cls, tokenizer.mask]].all()


def test_losses_are_sums_whatever_the_micro_batch(corpus, tokenizer):
    task = objective(32, tokenizer)
    model = build(BertConfig("bert", 2, 32, 2, 32), tokenizer.total_size).eval()
    model.initialize(1)
    found = samples(corpus, task, 12)

    def sums(size):
        batches = [task.collate(found[i : i + size]) for i in range(0, 12, size)]
        losses = [task.loss(model, {k: torch.from_numpy(v) for k, v in b.items()}) for b in batches]
        return torch.tensor([[x.item() for x in one.values()] for one in losses]).sum(0)

    whole = sums(12)
    for size in (1, 3, 6):
        assert sums(size) == pytest.approx(whole, rel=1e-6)
    counts = task.counts(found)
    assert whole[0] / counts["masked_lm"] == pytest.approx(np.log(tokenizer.total_size), abs=0.1)
    assert whole[1] / counts["next_sentence"] == pytest.approx(np.log(2), abs=0.05)


def test_nothing_crosses_documents_in_a_packed_sequence():
    """The loss of two packed documents is the sum of their losses."""
    task = objective(16, pairing="none")
    model = build(BertConfig("bert", 2, 32, 2, 16), 105, pairs=False).eval()
    model.initialize(1)
    pieces = [np.array([CLS, 50, 51, 52, SEP]), np.array([CLS, 60, 61, SEP])]
    apart = [task.corrupt([p], np.random.default_rng(i)) for i, p in enumerate(pieces)]
    together = {name: np.concatenate([s[name] for s in apart]) for name in apart[0]}
    together["documents"] = np.repeat([0, 1], [5, 4])
    together["masked_positions"] = np.concatenate([apart[0]["masked_positions"], apart[1]["masked_positions"] + 5])

    def loss(*of):
        return task.loss(model, {k: torch.from_numpy(v) for k, v in task.collate(list(of)).items()})["masked_lm"]

    assert loss(together).item() == pytest.approx(loss(*apart).item(), abs=1e-5)


def test_described_and_demonstrated(corpus, tokenizer):
    task = objective(64, tokenizer, masking="whole_word")
    text = task.describe(samples(corpus, task, 1)[0])
    assert text.count("[CLS]") == 1 and text.count("[SEP]") == 2 and "[MASK]" in text and "next_sentence" in text
    model = build(BertConfig("bert", 1, 16, 2, 64), tokenizer.total_size)
    model.initialize(1)
    context = Demonstration(samples(corpus, task, 4), Path(), 1)
    shown = task.demonstrate(model, context)
    assert "[MASK]" in shown and shown == task.demonstrate(model, context)
    assert "first choice is right for" in shown
