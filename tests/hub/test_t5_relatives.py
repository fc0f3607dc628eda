"""ByT5's and mT5's folders: what leaves is read by transformers with the same ids, and comes back; as do theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.export import ExportConfig, export
from pretraining.models.t5.config import T5Config
from pretraining.train import pretrain
from tests.building import build, open_folder
from tests.helpers import TINY, metrics, prepare

V1_1 = {"activation": "gated_gelu", "tie_embeddings": False}
TEXTS = ["é a", "  two\n\n\ttabs", "中文🙂", "\u2581x", "\x00\x7f", "", "The quick brown fox"]
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 64}
SHAPE |= {"num_decoder_layers": 1, "head_dim": 16, "intermediate_size": 64}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lines, `data` of their bytes, and a `run` of ByT5's shape on it."""
    folder = tmp_path_factory.mktemp("byt5")
    lines = [{"text": f"Zeile {n}: déjà vu, {n * n} " * 4} for n in range(60)]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prepare(*of_bytes(folder)) == 0
    model = ["model=byt5_small", *(f"model.{key}={value}" for key, value in SHAPE.items())]
    run = [*TINY[1:], *model, "objective=span_corruption", "objective.mean_span_length=20", "train.steps=2"]
    assert pretrain([*run, f"data.path={folder}/data", f"run_dir={folder}/run", "data.num_workers=0"]) == 0
    return folder


def of_bytes(folder: Path) -> list[str]:
    options = ["tokenizer.model_type=byte", "valid_fraction=0.2", "num_workers=0"]
    return [f"corpus.inputs=[{folder}/in.jsonl]", f"output={folder}/data", *options]


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    export(ExportConfig(f"{trained}/run", f"{trained}/out", None))
    return trained / "out"


def test_bytes_are_prepared_and_trained_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [json.loads(line)["text"] for line in (trained / "in.jsonl").read_text().splitlines()]
    manifest = load_manifest(trained / "data")
    reader = TextReader(manifest, "train")
    assert bytes((np.asarray(reader.read_document(0, 0, 0).tokens) - 3).astype(np.uint8)).decode() in texts
    assert sum(split.tokens for split in manifest.splits.values()) == sum(len(text.encode()) for text in texts)
    assert sorted(metrics(trained / "run")) == [1, 2]
    assert prepare(*of_bytes(trained), "tokenizer.vocab_size=300") == 2
    assert "tokenizer.vocab_size has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("reader", [transformers.AutoTokenizer, transformers.ByT5Tokenizer])
def test_transformers_reads_texts_and_sentinels_as_the_same_ids(reader: type, exported: Path) -> None:
    ours, theirs = Tokenizer.of_bytes(), reader.from_pretrained(exported)  # type: ignore[attr-defined]
    for text in TEXTS:
        assert theirs(text).input_ids == [*ours.encode(text), ours.eos]
    a, b = ours.encode("a"), ours.encode("b")
    assert theirs("a<extra_id_1>b").input_ids == [*a, ours.sentinels[1], *b, ours.eos]
    assert (len(theirs), theirs.pad_token_id, theirs.eos_token_id) == (384, ours.pad, ours.eos)


def test_it_fills_a_span(exported: Path) -> None:
    """What transformers generates begins as the model's own prediction does."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    text = tokenizer("déjà <extra_id_0> 12", return_tensors="pt")
    filled = model.generate(**text, max_new_tokens=4, do_sample=False, min_new_tokens=4)
    ours = ours_from(exported)
    logits = ours.head.logits(ours(text.input_ids, filled[:, :-1]))
    logits[..., tokenizer.eos_token_id] = -torch.inf  # min_new_tokens forbids it
    assert filled[0, 0] == tokenizer.pad_token_id and len(filled[0]) == 5
    assert filled[0, 1:].tolist() == logits[0, :, :384].argmax(-1).tolist()


def ours_from(folder: Path) -> torch.nn.Module:
    config, tokenizer = T5Config("t5", **SHAPE, **V1_1), Tokenizer.of_bytes()
    model = build(config, tokenizer.total_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    open_folder(folder, config, tokenizer.total_size, tokenizer).load_into(model)
    return model.eval()


def test_a_published_byt5_has_no_tokenizer_file_and_comes_in(exported: Path, tmp_path: Path) -> None:
    expected = ours_from(exported).state_dict()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(exported / name)
    with pytest.raises(InputError, match="384 entries, that of the prepared data has 391"):
        ours_from(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    found = ours_from(tmp_path).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_published_mt5_comes_in(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
    theirs = transformers.MT5ForConditionalGeneration(transformers.MT5Config(vocab_size=50, **sizes)).eval()
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(50, 32))  # published ones have a head of their own
    theirs.save_pretrained(tmp_path)
    config = T5Config("t5", **SHAPE, **V1_1)
    ours = build(config, 50)
    open_folder(tmp_path, config, 50).load_into(ours)
    inputs, targets = torch.randint(3, 50, (2, 9)), torch.randint(3, 50, (2, 5))
    expected = theirs(input_ids=inputs, decoder_input_ids=targets).logits
    torch.testing.assert_close(ours.eval().head.logits(ours(inputs, targets)), expected, atol=1e-4, rtol=0)
