"""A run over several corpora: what is drawn, what is logged, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from pretraining.hub.card import command_of
from pretraining.run.prepared import Prepared
from tests.helpers import TINY, command, finished_weights, metrics, prepare, train_alone, valid_losses

SMALL = ("valid_fraction=0.2", "num_workers=1", "block_tokens=256", "min_shards=2")
STEPS = 6


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two corpora with one tokenizer, and one with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("sources")
    words = {"en": "the line {} of the text {}", "de": "die Zeile {} des Textes {}", "odd": "la ligne {} du texte {}"}
    for name, documents in (("en", 60), ("de", 20), ("odd", 20)):
        lines = [" ".join(words[name].format(i, n * i) for i in range(9)) for n in range(documents)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        ready = f"tokenizer.path={folder}/out_en/tokenizer" if name == "de" else "tokenizer.vocab_size=300"
        inputs = f"corpus.inputs=[{folder}/{name}.jsonl]"
        assert prepare(inputs, f"output={folder}/out_{name}", ready, *SMALL) == 0
    return {name: folder / f"out_{name}" for name in words}


def mixture(sources: dict[str, Path], run_dir: Path, *more: str, names: str = "en de") -> list[str]:
    folders = ", ".join(f"{name}: '{sources[name]}'" for name in names.split())
    given = [f"data.sources={{{folders}}}", "data=mixture", f"run_dir={run_dir}", "data.window_blocks=2"]
    return [*TINY, *given, "model.dropout=0.1", f"train.steps={STEPS}", *more]


def drawn(line: dict[str, Any]) -> dict[str, int]:
    return {key.removeprefix("drawn/"): value for key, value in line.items() if key.startswith("drawn/")}


@pytest.fixture(scope="module")
def whole(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train_alone(*mixture(sources, run_dir, "data.shares={en: 3, de: 1}", "train.eval_every=3"))
    return run_dir


def test_what_is_drawn_and_each_corpus_loss_are_logged(whole, sources, tmp_path):
    lines = metrics(whole)
    assert [sum(drawn(line).values()) for line in lines.values()] == [8 * step for step in lines]
    assert 25 <= drawn(lines[STEPS])["en"] <= 44  # 36 is its share
    found = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in found if "valid_loss" in line):
        assert line["valid_loss"] == pytest.approx(0.75 * line["valid_loss/en"] + 0.25 * line["valid_loss/de"])
        bits = 0.75 * line["valid_bits_per_byte/en"] + 0.25 * line["valid_bits_per_byte/de"]
        assert line["valid_bits_per_byte"] == pytest.approx(bits)
    alone = (f"data.path={sources['de']}", "data.window_blocks=2", "train.steps=1", "train.eval_every=1")
    train_alone(*TINY, *alone, f"run_dir={tmp_path}/de")
    assert valid_losses(tmp_path / "de")[0] == next(line["valid_loss/de"] for line in found if "valid_loss" in line)


def test_micro_batches_and_workers_change_no_batch(whole, sources, tmp_path):
    more = ("data.shares={en: 3, de: 1}", "train.micro_batch_size=8", "data.num_workers=2")
    train_alone(*mixture(sources, tmp_path / "run", *more))
    other = metrics(tmp_path / "run")
    for step, line in metrics(whole).items():
        assert other[step]["batch_hash"] == line["batch_hash"] and drawn(other[step]) == drawn(line)


def test_a_resumed_mixture_is_the_undisturbed_one_bit_for_bit(whole, sources, tmp_path):
    common = ("data.shares={de: 0.5, en: 1.5}", "train.eval_every=3")  # the same proportions
    for steps in (4, STEPS):
        train_alone(*mixture(sources, tmp_path / "run", *common, f"train.steps={steps}", "scheduler=constant"))
    train_alone(*mixture(sources, tmp_path / "whole", *common, "scheduler=constant"))
    one, other = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    for key in ("loss", "grad_norm", "batch_hash", "drawn/en", "drawn/de"):
        assert [line[key] for line in one.values()] == [line[key] for line in other.values()]
    expected = finished_weights(tmp_path / "whole")
    assert all((tensor == expected[name]).all() for name, tensor in finished_weights(tmp_path / "run").items())
    assert [line["batch_hash"] for line in other.values()] == [line["batch_hash"] for line in metrics(whole).values()]


def test_other_shares_go_on_with_every_count(sources, tmp_path, capsys):
    """And are told; another corpus may come, the tokenizer stays."""
    run = tmp_path / "run"
    train_alone(*mixture(sources, run, "data.smoothing=1.0", "train.steps=3", names="en"))
    train_alone(*mixture(sources, run, "data.smoothing=0.5"))
    assert "data.smoothing was 1.0, is 0.5: from here on other numbers follow" in capsys.readouterr().err
    assert command("pretraining.commands.replay", f"run_dir={run}", "step=2") == 0
    told = capsys.readouterr().out
    assert "another batch than logged, as a mixture drew otherwise then: data.smoothing was 1.0, is 0.5" in told
    lines = metrics(run)
    assert drawn(lines[3]) == {"en": 24}
    assert drawn(lines[STEPS])["en"] + drawn(lines[STEPS])["de"] == 48 and 24 < drawn(lines[STEPS])["en"] < 48
    with pytest.raises(InputError, match=r"data.name was 'mixture', is 'shards'"):
        train_alone(*TINY, f"data.path={sources['en']}", f"run_dir={run}", "data.window_blocks=2", "model.dropout=0.1")
    with pytest.raises(InputError, match=r"data\.sources have another tokenizer"):
        train_alone(*mixture(sources, run, names="odd"))


def test_replay_names_the_corpora_of_a_steps_documents(whole, capsys):
    assert command("pretraining.commands.replay", f"run_dir={whole}", "step=5") == 0
    told = capsys.readouterr().out
    assert "the same bits as logged" in told
    assert ": en:train/shard-0000" in told and ": de:train/shard-0000" in told


def test_inspect_and_show_take_a_mixture(whole, sources, capsys):
    assert command("pretraining.train", *mixture(sources, whole / "none", "inspect=3")) == 0
    assert "line" in capsys.readouterr().out
    assert command("pretraining.commands.show", f"run_dir={whole}") == 0


@pytest.mark.parametrize(
    ("names", "more", "told"),
    [
        ("en odd", (), "out_odd (odd) was prepared with another tokenizer than"),
        ("en de", ("data.shares={en: 1}",), "data.shares names en, data.sources de, en"),
        ("en de", ("data.shares={en: 1, de: 0}",), "greater than 0"),
        ("en de", ("data.smoothing=0.7", "data.shares={en: 1, de: 1}"), "data.smoothing has no effect"),
        ("", (), "data.sources is missing"),
        ("en", ("data.sources={a/b: x}",), "data.sources"),
        ("en", ("data.path=x",), "data.path has no effect with data.name=mixture"),
    ],
)
def test_what_makes_no_mixture_ends_with_2(sources, tmp_path, names, more, told, capsys):
    assert command("pretraining.train", *mixture(sources, tmp_path / "run", *more, names=names)) == 2
    assert told in capsys.readouterr().err


def test_shares_come_from_the_tokens(sources, tmp_path):
    prepared = Prepared(load_config(mixture(sources, tmp_path, "data.smoothing=0.5")))
    tokens = {name: manifest.splits["train"].tokens for name, manifest in prepared.manifests.items()}
    shares = prepared.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert prepared.mixture_lines() == [f"mixture: en {shares['en']:.3%}, de {shares['de']:.3%} of the samples"]
    assert shares["en"] / shares["de"] == pytest.approx((tokens["en"] / tokens["de"]) ** 0.5)


def test_the_card_of_an_export_tells_a_command_that_gives_the_same_mixture(sources, tmp_path):
    config = load_config(mixture(sources, tmp_path, "data.shares={en: 3, de: 1}"))
    words = shlex.split(command_of(config))
    assert "data=mixture" in words and load_config(words[1:]) == config
