"""An evaluation line says what it is of: the whole validation split once, its tokens, its bits per byte of text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from data_pipeline.loader import RankSlice, micro_batches
from pretraining.build import make_stream
from pretraining.config import load_config
from pretraining.objectives.registry import build_objective
from pretraining.run.faults import TargetWatch
from pretraining.run.metrics import read_metrics
from pretraining.run.prepared import Prepared
from tests.helpers import TINY, prepare, run_world, train_alone, train_in_world

OBJECTIVES = (
    ("model=gpt_debug", "objective=causal_lm"),
    ("model=bert_debug", "objective=masked_lm", "objective.pairing=none"),
    ("model=t5_debug", "objective=span_corruption"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few thousand tokens, some of characters that are several bytes: an evaluation is a matter of moments."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(12):
        lines = [f"Line {i} of file {number}: déjà vu, {i * number} \u2264 {i + number}.\n" for i in range(8)]
        (folder / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    output = folder / "data"
    inputs = f"corpus.inputs=[{folder}/*.txt]"
    assert prepare(inputs, f"output={output}", "tokenizer.vocab_size=330", "valid_fraction=0.3", "num_workers=1") == 0
    return output


def overrides(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=1", "train.eval_every=1", *more]


def evaluation(run_dir: Path) -> dict[str, float]:
    """The last one."""
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if "valid_loss" in line][-1]  # type: ignore[return-value]


@pytest.mark.parametrize("choices", OBJECTIVES, ids=lambda choices: choices[1])
def test_null_is_the_whole_split_once_however_it_is_cut(corpus: Path, tmp_path: Path, choices: tuple[str, ...]) -> None:
    """A global batch that the split does not fill counts nothing twice: its size changes no number."""
    found = []
    for number, (whole, micro) in enumerate(((8, 2), (8, 8), (200, 100), (6, 3))):
        batch = (f"train.global_batch_size={whole}", f"train.micro_batch_size={micro}", "optimizer.lr=1e-30")
        train_alone(*overrides(corpus, tmp_path / str(number), *choices, *batch, "train.eval_batches=null"))
        found.append(evaluation(tmp_path / str(number)))
    for line in found[1:]:
        assert line["valid_tokens"] == found[0]["valid_tokens"]
        assert line["valid_loss"] == pytest.approx(found[0]["valid_loss"], rel=1e-5)
        assert line["valid_bits_per_byte"] == pytest.approx(found[0]["valid_bits_per_byte"], rel=1e-5)


def test_more_batches_than_there_are_is_the_whole_split(corpus: Path, tmp_path: Path) -> None:
    for name, batches in (("all", "null"), ("many", "100000"), ("one", "1")):
        train_alone(*overrides(corpus, tmp_path / name, "optimizer.lr=1e-30", f"train.eval_batches={batches}"))
    whole, many, one = (evaluation(tmp_path / name) for name in ("all", "many", "one"))
    del whole["time"], many["time"]
    assert whole == many and one["valid_tokens"] < whole["valid_tokens"]


def test_bytes_are_those_of_the_text(corpus: Path, tmp_path: Path) -> None:
    """Every token of the split is predicted once, so that the bytes are those of its documents."""
    train_alone(*overrides(corpus, tmp_path / "run", "train.eval_batches=null"))
    line = evaluation(tmp_path / "run")
    config = load_config(overrides(corpus, tmp_path / "run"))
    data = Prepared(config)
    assert data.tokenizer is not None
    reader = data.reader("valid")
    texts = [
        data.tokenizer.decode(reader.read_document(shard, block, document).tokens)
        for shard, blocks in enumerate(reader.blocks_per_shard)
        for block in range(blocks)
        for document in range(len(reader.document_lengths(shard, block)))
    ]
    split = data.first.splits["valid"]
    targets = split.tokens + split.documents  # and an end for each document
    size = sum(len(text.encode()) for text in texts)
    assert line["valid_bits_per_byte"] == pytest.approx(line["valid_loss"] * targets / size / math.log(2), rel=0.01)


def test_two_ranks_evaluate_what_one_does(corpus: Path, tmp_path: Path) -> None:
    """Also where the last global batch leaves one of them nothing."""
    more = ("train.eval_batches=null", "train.global_batch_size=64", "train.micro_batch_size=32")
    train_alone(*overrides(corpus, tmp_path / "one", *more))
    for engine in (("engine=torch",), ("engine=deepspeed", "engine.zero_stage=3")):
        folder = tmp_path / engine[0].removeprefix("engine=")
        run_world(2, train_in_world, *overrides(corpus, folder, *more, *engine))
        line, alone = evaluation(folder), evaluation(tmp_path / "one")
        assert line["valid_tokens"] == alone["valid_tokens"]
        assert line["valid_loss"] == pytest.approx(alone["valid_loss"], rel=1e-5)
        assert line["valid_bits_per_byte"] == pytest.approx(alone["valid_bits_per_byte"], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_pass_holds_each_sequence_once_and_all_ranks_as_many_micro_batches(corpus: Path, size: int) -> None:
    config = load_config(overrides(corpus, Path("unused")))
    data = Prepared(config)
    objective = build_objective(config.objective, data.spec).for_evaluation()
    stream = make_stream(config, data, objective, "valid")
    ranks = [
        [
            batch
            for batch, _ in micro_batches(
                stream, objective, RankSlice(4 * size, size, rank, 2), stream.start(), passes=1
            )
        ]
        for rank in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1])
    plans = [stream.window(0, window).plan.num_sequences for window in range(stream.windows_per_epoch)]
    assert sum(batch.samples for rank in ranks for batch in rank) == sum(plans)
    assert all(len(next(iter(batch.arrays.values()))) > 0 for rank in ranks for batch in rank)


@pytest.fixture(scope="module")
def one_word_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    words = [f"{first}{middle}{last}" for first in "bcdfgh" for middle in "aeiou" for last in ("ndlewick", "rmonious")]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    assert (
        prepare(
            f"corpus.inputs=[{folder}/in.jsonl]",
            f"output={folder / 'data'}",
            "tokenizer.model_type=char",
            "valid_fraction=0.3",
            "num_workers=1",
        )
        == 0
    )
    return folder / "data"


def test_a_loss_without_targets_is_null_and_told(
    one_word_documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole-word masking never has room for a word that is all there is."""
    words = ("model=bert_debug", "objective=masked_lm", "objective.masking=whole_word")
    train_alone(*overrides(one_word_documents, tmp_path / "run", *words, "train.steps=2"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["loss"] for line in training] == [None, None] and len(lines) == 5
    for line in training:
        assert line["lacking"] == ["masked_lm", "next_sentence"] and line["masked_lm"] is None
    assert evaluation(tmp_path / "run")["valid_loss"] is None
    assert evaluation(tmp_path / "run")["valid_lacking"] == ["masked_lm", "next_sentence"]
    said = capsys.readouterr()
    assert said.err.count("have 0 targets of masked_lm: little is trained of it") == 1
    assert "valid_loss none (no targets of masked_lm, next_sentence)" in said.out


def test_few_targets_are_told_once_for_each_term() -> None:
    watch = TargetWatch(["a", "b"], global_batch_size=100)
    assert watch.see(1, {"a": 10, "b": 500}) == []
    assert [text[:50] for text in watch.see(2, {"a": 9, "b": 500})] == [
        "warning: the 100 samples of step 2 have 9 targets "
    ]
    assert watch.see(3, {"a": 0, "b": 500}) == [] and len(watch.see(4, {"a": 0, "b": 0})) == 1
