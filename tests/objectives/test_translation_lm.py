"""Translation language modeling: what a sample holds, and by what law its tokens are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Concatenation
from data_pipeline.stream.pairs import PairOfTexts, PairPacking
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.translation_lm import TranslationLM, TranslationLMConfig
from tests.helpers import TINY, command, finished_weights, metrics, prepare, train_alone


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred sentences with their translations, prepared."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        (f"the {n} green houses of street {7 * n}", f"die {n} grünen Häuser der Straße {7 * n}") for n in range(400)
    ]
    (folder / "a.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    options = ("tokenizer.vocab_size=400", "valid_fraction=0.1", "num_workers=1", "block_tokens=1000")
    assert prepare("corpus=pairs", f"corpus.inputs=[{folder}/a.tsv]", f"output={folder}/data", *options) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def tokenizer(pairs):
    return Tokenizer.load(pairs / "tokenizer")


def objective(tokenizer, length=64, **keys):
    return TranslationLM(TranslationLMConfig("translation_lm", **keys), SampleSpec(seq_len=length, tokenizer=tokenizer))


def pair(source: int, target: int, first: int = 300) -> PairOfTexts:
    return PairOfTexts(np.arange(first, first + source), np.arange(first + 50, first + 50 + target))


def test_two_sentences_are_framed_and_counted_anew(tokenizer):
    sample = objective(tokenizer, mask_rate=1e-9).corrupt([pair(3, 4), pair(2, 1)], np.random.default_rng(0))
    cls, sep = tokenizer.cls, tokenizer.sep
    first = [cls, 300, 301, 302, sep, cls, 350, 351, 352, 353, sep]
    assert sample["tokens"].tolist() == [*first, cls, 300, 301, sep, cls, 350, sep]
    assert sample["segments"].tolist() == [0] * 5 + [1] * 6 + [0] * 4 + [1] * 3
    assert sample["positions"].tolist() == [*range(5), *range(6), *range(4), *range(3)]
    assert sample["documents"].tolist() == [0] * 11 + [1] * 7
    assert len(sample["labels"]) == 0 and set(sample) == {
        *("tokens", "segments", "positions", "documents", "masked_positions", "labels")
    }


def published(tokens: np.ndarray, starts: list[int], rate: float, rng: np.random.Generator) -> np.ndarray:
    """Which tokens facebookresearch/XLM's mask_out would predict, column by column of its batch."""
    chosen = rng.random(len(tokens)) <= rate
    chosen[starts] = False
    return chosen


def test_tokens_are_chosen_by_the_published_law(tokenizer):
    """By counts: each token alone with the same probability, frames too, never a pair's first."""
    task, drawn, theirs = objective(tokenizer), [], []
    kinds = {"mask": 0, "kept": 0, "other": 0}
    for seed in range(4000):
        sample = task.corrupt([pair(12, 9), pair(10, 11)], np.random.default_rng(seed))
        positions, labels = sample["masked_positions"], sample["labels"]
        drawn.append(np.bincount(positions, minlength=len(sample["tokens"])))
        theirs.append(published(sample["tokens"], [0, 25], 0.15, np.random.default_rng(10**6 + seed)))
        shown = sample["tokens"][positions]
        kinds["mask"] += int((shown == tokenizer.mask).sum())
        kinds["kept"] += int((shown == labels).sum())
        kinds["other"] += int(((shown != labels) & (shown != tokenizer.mask)).sum())
        assert not {tokenizer.mask, tokenizer.pad} & set(labels.tolist())
    ours, expected = np.array(drawn), np.array(theirs)
    rates = ours.mean(0)
    assert rates[[0, 25]].tolist() == [0, 0]
    others = np.delete(rates, [0, 25])
    assert abs(others - 0.15).max() < 4.5 * np.sqrt(0.15 * 0.85 / 4000)
    assert ours.sum(1).var() == pytest.approx(expected.sum(1).var(), rel=0.1)  # binomial, not a fixed count
    total = sum(kinds.values())
    assert [kinds[k] / total for k in ("mask", "kept", "other")] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_predictions_of_a_full_sequence_fit_its_arrays(tokenizer):
    task = objective(tokenizer, length=128)
    sizes = [len(task.corrupt([pair(62, 62, 200)], np.random.default_rng(seed))["labels"]) for seed in range(500)]
    assert max(sizes) < task.max_predictions <= 46 and np.mean(sizes) == pytest.approx(0.15 * 127, rel=0.03)
    batch = task.collate([task.corrupt([pair(62, 62, 200)], np.random.default_rng(1))])
    assert batch["tokens"].shape == (1, 128) and batch["masked_positions"].shape == (1, task.max_predictions)


@pytest.mark.parametrize(
    ("source", "target", "kept"), [(3, 5, (3, 5)), (30, 4, (8, 4)), (4, 30, (4, 8)), (9, 9, (6, 6))]
)
def test_a_pair_that_is_too_long_loses_the_ends_of_its_sides(source, target, kept):
    tokens = np.arange(source + target)
    packing = PairPacking(16, 4)
    document = TokenizedDocument(tokens, np.array([0, source]))
    (segment,) = packing.plan(np.array([source + target])).segments(0)
    cut = packing.cut(document, segment)
    assert (len(cut.source), len(cut.target)) == kept
    assert cut.source.tolist() == list(range(kept[0])) and cut.target[0] == source


def test_every_pair_stands_in_one_sequence_that_holds_it():
    lengths = np.random.default_rng(0).integers(2, 40, 500)
    plan = PairPacking(48, 4).plan(lengths)
    found = [plan.segments(n) for n in range(plan.num_sequences)]
    assert [s.document for row in found for s in row] == list(range(500))
    used = [sum(s.stop - s.start + 4 for s in row) for row in found]
    assert max(used) <= 48
    for row, following, size in zip(found[:-1], found[1:], used[:-1], strict=True):
        assert row and size + following[0].stop + 4 > 48  # no pair more would have fitted
    assert PairPacking(48, 4).plan(np.array([], int)).num_sequences == 0


RUN = ("model=bert_debug", "objective=translation_lm", "model.dropout=0.1", "train.steps=4")


def test_a_resumed_run_is_the_undisturbed_one(pairs, tmp_path):
    for name, steps in (("whole", 4), ("resumed", 2), ("resumed", 4)):
        common = (*TINY, *RUN, f"data.path={pairs}", "scheduler=constant", f"train.steps={steps}")
        train_alone(*common, f"run_dir={tmp_path / name}")
    whole, resumed = metrics(tmp_path / "whole"), metrics(tmp_path / "resumed")
    assert all(whole[s][k] == resumed[s][k] for s in whole for k in ("loss", "grad_norm", "batch_hash"))
    expected = finished_weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in finished_weights(tmp_path / "resumed").items())


def test_inspect_shows_both_sentences(pairs, tmp_path, capsys):
    assert command("pretraining.train", *TINY, *RUN, f"data.path={pairs}", "inspect=1") == 0
    told = capsys.readouterr().out
    assert "[CLS]" in told and "[SEP][CLS]" in told and "targets:" in told and "Straße" in told


def test_texts_without_translations_are_refused(corpus, pairs, capsys):
    assert command("pretraining.train", *TINY, *RUN, f"data.path={corpus}") == 2
    assert "holds text, objective=translation_lm needs pairs" in capsys.readouterr().err
    assert command("pretraining.train", *TINY, f"data.path={pairs}") == 2
    assert "holds pairs, objective=causal_lm needs text" in capsys.readouterr().err


def test_texts_beside_pairs_are_masked_by_the_same_law(tokenizer):
    """XLM's trainer masks a stream of one language by the rule of two sentences side by side (trainer.py, mlm_step)."""
    task, cls, sep = objective(tokenizer), tokenizer.cls, tokenizer.sep
    assert type(task.packing_of("en", "text")) is Concatenation and type(task.packing_of("x", "pairs")) is PairPacking
    parts = [np.array([cls, *range(300, 320), sep]), np.arange(330, 340)]  # the second one was cut on both sides
    plain = objective(tokenizer, mask_rate=1e-9).corrupt(parts, np.random.default_rng(0))
    assert plain["tokens"].tolist() == [cls, *range(300, 320), sep, cls, *range(330, 340), sep]
    assert plain["positions"].tolist() == [*range(22), *range(12)] and not plain["segments"].any()
    assert plain["documents"].tolist() == [0] * 22 + [1] * 12
    samples = [task.corrupt(parts, np.random.default_rng(seed)) for seed in range(1500)]
    rates = np.mean([np.bincount(s["masked_positions"], minlength=34) for s in samples], 0)
    assert rates[[0, 22]].tolist() == [0, 0]
    assert abs(np.delete(rates, [0, 22]) - 0.15).max() < 4.5 * np.sqrt(0.15 * 0.85 / 1500)


def test_a_mixture_holds_texts_beside_pairs(pairs, tmp_path, capsys):
    (tmp_path / "en.jsonl").write_text("".join(f'{{"text": "the {n} houses of {n * n}"}}\n' for n in range(200)))
    ready = (f"tokenizer.path={pairs}/tokenizer", "num_workers=1", "valid_fraction=0.1")
    assert prepare(f"corpus.inputs=[{tmp_path}/en.jsonl]", f"output={tmp_path}/en", *ready) == 0
    sources = f"data.sources={{en: '{tmp_path}/en', en-de: '{pairs}'}}"
    mixed = (*TINY, *RUN, "data=mixture", sources, "data.shares={en: 1, en-de: 1}", "train.eval_every=4")
    train_alone(*mixed, f"run_dir={tmp_path}/run")
    last = metrics(tmp_path / "run")[4]
    assert last["drawn/en"] + last["drawn/en-de"] == 32 and min(last["drawn/en"], last["drawn/en-de"]) > 8
    capsys.readouterr()
    only = f"data.sources={{en: '{tmp_path}/en'}}"
    assert command("pretraining.train", *TINY, *RUN, "data=mixture", only, f"run_dir={tmp_path}/no") == 2
    assert f"data.sources.en={tmp_path}/en holds text, objective=translation_lm needs pairs" in capsys.readouterr().err
    assert command("pretraining.train", *TINY, "data=mixture", sources, f"run_dir={tmp_path}/no") == 2
    assert "holds pairs, objective=causal_lm needs text" in capsys.readouterr().err


def test_a_model_that_keeps_no_pairs_apart_is_refused(tokenizer):
    with pytest.raises(InputError, match="translation_lm restarts positions at each sentence"):
        TranslationLM(
            TranslationLMConfig("translation_lm"), SampleSpec(seq_len=64, tokenizer=tokenizer, packs_documents=False)
        )
