"""Families with an objective of their own, as a user runs them: resumed with dropout, exported or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from pretraining.hub.export import ExportConfig, export
from pretraining.models.registry import FAMILIES
from tests.helpers import finished_weights, metrics, train_alone

RUN = [
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler=constant",
    "tracking.wandb=disabled",
    "data.num_workers=0",
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.dropout=0.1",
]
MODELS = {
    "electra": ["model=electra_debug", "objective=replaced_token", "model.max_seq_len=32"],
    "transformer_xl": [
        "model=transformer_xl_debug",
        "objective=recurrent_lm",
        "objective.segment=8",
        "model.memory=12",
        "model.max_seq_len=32",
    ],
    "xlnet": [
        "model=xlnet_debug",
        "objective=permutation_lm",
        "objective.warm=1",
        "model.memory=12",
        "model.max_seq_len=32",
    ],
    "elmo": ["model=elmo_debug", "objective=bidirectional_lm", "objective.characters=10", "model.max_seq_len=16"],
}


def run(name: str, corpus: Path, run_dir: Path, *more: str) -> Path:
    common = [option for option in RUN if name != "elmo" or "num_heads" not in option]  # an LSTM has none
    train_alone(*MODELS[name], *common, f"data.path={corpus}", f"run_dir={run_dir}", *more)
    return run_dir


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four steps of each, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: run(name, corpus, folder / name, "train.steps=4") for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, whole: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    for steps in (2, 4):
        run(name, corpus, tmp_path / "r", f"train.steps={steps}")
    expected, found = finished_weights(whole[name]), finished_weights(tmp_path / "r")
    assert expected.keys() == found.keys()
    assert [n for n, tensor in expected.items() if not torch.equal(tensor, found[n])] == []
    hashes = [[line["batch_hash"] for line in metrics(f).values()] for f in (whole[name], tmp_path / "r")]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 4


@pytest.mark.parametrize("name", [n for n in MODELS if FAMILIES[n].huggingface])
def test_an_export_is_proven_and_comes_back(name: str, whole: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = export(ExportConfig(str(whole[name]), str(output)))
    for folder in (output, *(output / part for part in FAMILIES[name].companions)):
        assert json.loads((folder / "parity.json").read_text())["max_abs_difference"] <= report["max_abs_difference"]
        assert (folder / "tokenizer.json").is_file() and (folder / "model.safetensors").is_file()
    assert report["max_abs_difference"] < 1e-5
    start = [f"model.init_from={output}", "optimizer.lr=1e-30", "train.steps=1"]
    back = finished_weights(run(name, corpus, tmp_path / "next", *start))
    assert [
        n for n, t in finished_weights(whole[name]).items() if n[:8] == "weights." and not torch.equal(t, back[n])
    ] == []


@pytest.mark.parametrize("name", [n for n in MODELS if not FAMILIES[n].huggingface])
def test_a_model_that_transformers_does_not_have_is_refused_by_name(
    name: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"model.name={name}"):
        export(ExportConfig(str(whole[name]), str(tmp_path / "out")))


@pytest.mark.parametrize("name", MODELS)
def test_tensor_parallelism_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"model.name={name} does not run with engine.tensor_parallel=2"):
        load_config([*MODELS[name], "data.path=x", "engine=megatron", "engine.tensor_parallel=2"], ranks=2)
