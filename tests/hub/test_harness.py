"""A GPT's valid_loss is what others find of the exported model: lm-evaluation-harness, where it is installed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline.shards.text import TokenizedDocument
from pretraining.config import load_config
from pretraining.objectives.text.rolling_windows import RollingWindows
from pretraining.run.metrics import read_metrics
from pretraining.run.prepared import Prepared
from tests.helpers import TINY, command, prepare, train_alone

LENGTH = 24
MODELS = {
    "gpt2": ["model=gpt_debug"],
    "llama": ["model=llama_160m", "model.num_layers=1", "model.num_kv_heads=1", "model.intermediate_size=48"],
    "fim": ["model=gpt_debug", "objective.fim_rate=0.9"],
}


@dataclass
class Trained:
    """model: the exported folder. texts: of the held-out documents, as the model's tokenizer spells them, each with
    its end. line: of the run's only evaluation."""

    model: Path
    texts: list[str]
    line: dict[str, float]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of less than a window, of several windows, and of all between."""
    folder = tmp_path_factory.mktemp("harness")
    for number in range(60):
        text = " ".join(f"{word * number % 97} of file {number}" for word in range(1 + number * number // 60))
        (folder / f"{number}.txt").write_text(text)
    inputs = f"corpus.inputs=[{folder}/*.txt]"
    options = ("tokenizer.vocab_size=300", "valid_fraction=0.4", "num_workers=1")
    assert prepare(inputs, f"output={folder / 'data'}", *options) == 0
    return folder / "data"


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [
        *TINY,
        *MODELS[request.param],
        f"data.path={corpus}",
        f"run_dir={folder / 'run'}",
        "model.hidden_size=32",
        "model.num_heads=2",
        f"model.max_seq_len={LENGTH}",
        "train.steps=20",
        "train.eval_every=20",
        "train.eval_batches=null",
        "optimizer.lr=1e-2",
    ]
    train_alone(*overrides)
    assert command("pretraining.export", f"checkpoint={folder / 'run'}", f"output={folder / 'model'}") == 0
    *_, line = (line for line in read_metrics(folder / "run/metrics.jsonl") if "valid_loss" in line)
    return Trained(folder / "model", list(documents(Prepared(load_config(overrides)))), line)  # type: ignore[arg-type]


def documents(data: Prepared) -> Iterator[str]:
    assert data.tokenizer is not None
    reader = data.reader("valid")
    for shard, blocks in enumerate(reader.blocks_per_shard):
        for block in range(blocks):
            for number in range(len(reader.document_lengths(shard, block))):
                tokens = reader.read_document(shard, block, number).tokens
                yield data.tokenizer.decode([*tokens])


def test_a_plain_loop_finds_the_loss(trained: Trained) -> None:
    """Of transformers' model, window by window."""
    model = AutoModelForCausalLM.from_pretrained(trained.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    total = count = 0.0
    for text in trained.texts:
        tokens = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        for inputs, predicted in harness_windows([tokenizer.bos_token_id, *tokens], LENGTH):
            with torch.no_grad():
                logits = model(torch.tensor([inputs])).logits[0, -len(predicted) :]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(predicted), reduction="sum").item()
            count += len(predicted)
    assert trained.line["valid_loss"] == pytest.approx(total / count, abs=1e-5)
    size = sum(len(text.encode()) for text in trained.texts)
    assert trained.line["valid_bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-5)


def test_the_harness_finds_the_loss(trained: Trained) -> None:
    """An end of a document is predicted as well, so that its text is given with it."""
    pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(trained.model), device="cpu", dtype="float32", batch_size=4, add_bos_token=False)
    texts = [text + model.tokenizer.eos_token for text in trained.texts]
    found = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    count = sum(len(model.tok_encode(text)) for text in texts)
    assert trained.line["valid_loss"] == pytest.approx(-sum(found) / count, abs=1e-3)


def harness_windows(tokens: Sequence[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(inputs, the tokens that the last of them predict): what lm-evaluation-harness asks a model of `length` inputs
    for a text with its first token given. Each window but the last predicts `length` tokens."""
    done = 1
    while done < len(tokens):
        end = min(done + length, len(tokens))
        yield list(tokens[max(0, end - 1 - length) : end - 1]), list(tokens[done:end])
        done = end


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(2, 9))
def test_windows_are_the_harness_windows(lengths: list[int], length: int) -> None:
    packing = RollingWindows(length, bos=1, eos=2)
    plan = packing.plan(np.array(lengths))
    found: list[tuple[list[int], list[int]]] = []
    for sequence in range(plan.num_sequences):
        segments = plan.segments(sequence)
        assert 0 < sum(segment.stop - segment.start - 1 for segment in segments) <= length
        for segment in segments:
            document = TokenizedDocument(np.arange(lengths[segment.document], dtype=np.uint16) + 10, np.zeros(1))
            tokens, predicted = packing.cut(document, segment)
            found.append((tokens[:-1].tolist(), tokens[predicted == 1].tolist()))
    expected = [window for n in lengths for window in harness_windows([1, *range(10, 10 + n), 2], length)]
    assert found == expected
