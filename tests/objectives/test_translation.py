"""Translation: rows of whole pairs, label smoothing in training alone, and BLEU where it is logged and shown."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.build import read_data
from pretraining.config import load_config
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.transformer_2017.config import TransformerConfig2017
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.sequence import translation
from pretraining.objectives.sequence.pair_rows import PairRows
from pretraining.objectives.sequence.translation import Translation, TranslationConfig
from pretraining.parallel.layers import PlainLayers
from tests.helpers import command, metrics, train_alone

needs_sacrebleu = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="no sacreBLEU")
TINY = [
    "model=transformer_debug",
    "objective=translation",
    "optimizer=adam",
    "model.hidden_size=32",
    "model.max_seq_len=32",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.checkpoint_every=0",
    "scheduler.warmup_steps=2",
    "tracking.wandb=disabled",
    "data.num_workers=0",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog\n" * 20], "bpe", 300)


def make(tokenizer: Tokenizer, length: int = 32, **keys: Any) -> Translation:
    return Translation(TranslationConfig(name="translation", **keys), SampleSpec(seq_len=length, tokenizer=tokenizer))


def pair(tokenizer: Tokenizer, source: str, target: str) -> TokenizedDocument:
    a, b = tokenizer.encode(source), tokenizer.encode(target)
    return TokenizedDocument(np.array([*a, *b], np.uint16), np.array([0, len(a)]))


def trained(objective: Translation, tokenizer: Tokenizer) -> Any:
    config = TransformerConfig2017("transformer", 2, 16, 2, 32)
    model: Any = build_model(config, Vocabulary(tokenizer.total_size, tokenizer.special_ids), PlainLayers())
    attach_heads(model, objective, PlainLayers()).initialize(1)
    return model


def test_rows_hold_whole_pairs_up_to_either_side() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 14, (200, 2))
    sizes[7] = (20, 3)  # fits no row
    starts = np.cumsum(np.concatenate([[0], sizes.reshape(-1)[:-1]]))
    plan = PairRows(16, 12).plan(sizes.sum(1), lambda: starts)
    rows = [[s.document for s in plan.segments(i)] for i in range(plan.num_sequences)]
    left_out = np.flatnonzero((sizes[:, 0] + 1 > 16) | (sizes[:, 1] + 1 > 12))
    assert [i for row in rows for i in row] == [i for i in range(200) if i not in left_out] and 7 in left_out
    full = [(sizes[row] + 1).sum(0) for row in rows]
    assert all(a <= 16 and b <= 12 for a, b in full)
    for row, following in itertools.pairwise(rows):  # the next pair would not have fitted
        a, b = (sizes[[*row, following[0]]] + 1).sum(0)
        assert a > 16 or b > 12
    alone = PairRows(16, 12, together=False).plan(sizes.sum(1), lambda: starts)
    assert all(len(alone.segments(i)) == 1 for i in range(alone.num_sequences))


def test_a_sample_is_pairs_one_after_another(tokenizer: Tokenizer) -> None:
    objective = make(tokenizer, targets_length=40)
    texts = [("the fox", "lazy dog jumps"), ("brown", "quick")]
    sample = objective.corrupt([pair(tokenizer, *text) for text in texts], np.random.default_rng(0))
    (a, b), (c, d) = (tuple(tokenizer.encode(side) for side in text) for text in texts)
    eos, pad = tokenizer.eos, tokenizer.pad
    assert sample["inputs"].tolist() == [*a, eos, *c, eos]
    assert sample["labels"].tolist() == [*b, eos, *d, eos]
    assert sample["decoder_inputs"].tolist() == [pad, *b, pad, *d]
    assert sample["input_documents"].tolist() == [0] * (len(a) + 1) + [1] * (len(c) + 1)
    batch = objective.collate([sample])
    assert (batch["inputs"].shape, batch["labels"].shape) == ((1, 32), (1, 40)) and objective.target_length() == 40
    assert objective.size(sample) == len(a) + len(b) + len(c) + len(d) + 4
    assert objective.target_bytes([sample]) == len("lazy dog jumps") + len("quick")
    assert objective.describe(sample).splitlines()[:2] == ["source: the fox[EOS]", "target: lazy dog jumps[EOS]"]


def test_a_row_is_the_sum_of_its_pairs_and_labels_are_smoothed_in_training_alone(tokenizer: Tokenizer) -> None:
    objective = make(tokenizer)
    model = trained(objective, tokenizer)
    pairs = [pair(tokenizer, "the fox", "lazy dog"), pair(tokenizer, "brown", "quick jumps")]

    def loss(*rows: list[TokenizedDocument]) -> float:
        samples = [objective.corrupt(row, np.random.default_rng(0)) for row in rows]
        batch = {name: torch.from_numpy(array) for name, array in objective.collate(samples).items()}
        return objective.loss(model, batch)["translation"].item()

    assert loss(pairs) == pytest.approx(loss(pairs[:1], pairs[1:]), rel=1e-5)

    def expected(smoothing: float) -> float:
        total, used = 0.0, torch.from_numpy(objective.used_ids())
        for one in pairs:
            sample = objective.corrupt([one], np.random.default_rng(0))
            hidden = model(*(torch.from_numpy(sample[name])[None] for name in ("inputs", "decoder_inputs")))
            logits = (hidden @ model.token_embedding.weight.T)[0][:, used]
            labels = torch.from_numpy(np.searchsorted(objective.used_ids(), sample["labels"]))
            total += torch.nn.functional.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=smoothing
            ).item()
        return total

    assert loss(pairs) == pytest.approx(expected(0.1), rel=1e-5)
    model.eval()
    assert loss(pairs) == pytest.approx(expected(0.0), rel=1e-5)


@needs_sacrebleu
def test_bleu_is_sacrebleus_of_what_beam_search_writes(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sacrebleu import corpus_bleu

    objective = make(tokenizer, bleu_pairs=3, targets_length=54)
    texts = [("the fox", "the quick brown fox"), ("dog", "the lazy dog jumps"), ("lazy", "over the dog"), ("a", "b")]
    rows = [[pair(tokenizer, *text) for text in texts[:2]], [pair(tokenizer, *text) for text in texts[2:]]]
    samples = [objective.corrupt(row, np.random.default_rng(0)) for row in rows]
    written = {"the fox": "the quick brown fox", "dog": "the lazy dog over", "lazy": "fox"}

    def search(
        model: Any, inputs: Any, start: int, stop: int, lengths: Any, beams: int, alpha: float
    ) -> list[list[int]]:
        assert (start, stop, beams, alpha) == (tokenizer.pad, tokenizer.eos, 4, 0.6)
        assert lengths == [min(len(source) + 50, 54) for source in inputs]
        return [tokenizer.encode(written[tokenizer.decode(source)]) for source in inputs]

    monkeypatch.setattr(translation, "beam_search", search)
    expected = corpus_bleu(list(written.values()), [[target for _, target in texts[:3]]]).score
    assert objective.scores(Any, samples) == {"bleu": pytest.approx(expected)} and 30 < expected < 100


@needs_sacrebleu
def test_an_evaluation_logs_it_and_a_demonstration_shows_it(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_alone(
        *TINY, f"data.path={pairs}", f"run_dir={run}", "train.steps=2", "train.eval_every=2", "objective.bleu_pairs=5"
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_bleu" in line] == [2]
    assert all(0 <= line["valid_bleu"] < 100 for line in lines if "valid_bleu" in line)
    capsys.readouterr()
    assert command("pretraining.commands.show", f"run_dir={run}") == 0
    shown = capsys.readouterr().out
    assert shown.count("\n  written: ") == 4 and "\nbleu " in shown


def test_samples_are_shown_without_sacrebleu(pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_alone(*TINY, f"data.path={pairs}", f"run_dir={run}", "train.steps=2", "train.eval_every=2")
    assert list(metrics(run)) == [1, 2]
    assert "written: " in (run / "samples" / "step_00000002" / "samples.txt").read_text()


@pytest.mark.parametrize("model", ["transformer_debug", "bart_debug", "t5_debug"])
def test_a_decoder_writes_no_more_than_it_has_positions_for(model: str, pairs: Path) -> None:
    lengths = ("model.max_seq_len=64", "data.seq_len=32", "objective.targets_length=80")
    config = load_config([f"model={model}", "objective=translation", *lengths, f"data.path={pairs}"])
    if model == "t5_debug":  # relative positions
        assert read_data(config).objective.target_length() == 80
        return
    with pytest.raises(InputError, match=r"to write 80 tokens .*, more than model\.max_seq_len=64"):
        read_data(config)


def test_what_cannot_be_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"objective\.targets_length of at least 8, not 3"):
        make(tokenizer, targets_length=3)
    monkeypatch.setattr(translation, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"objective\.bleu_pairs=5 needs sacreBLEU: pip install"):
        make(tokenizer, bleu_pairs=5).for_evaluation()
    empty = make(tokenizer)
    assert empty.scores(Any, []) == {}


def test_a_demonstration_translates(tokenizer: Tokenizer, tmp_path: Path) -> None:
    objective = make(tokenizer)
    sample = objective.corrupt([pair(tokenizer, "the fox", "lazy dog")], np.random.default_rng(0))
    shown = objective.demonstrate(trained(objective, tokenizer), Demonstration([sample], tmp_path, seed=1, longest=5))
    assert shown.startswith("source: the fox\n  target: lazy dog\n  written: ") and "of 1 targets" in shown
