"""tokenizer.model_type=byte: ByT5's ids, and what is written with them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.tokenizers.export import Frame, convert, disagreements
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import TINY, command, metrics, prepare

TEXTS = ["é a", "  two\n\n\ttabs", "中文🙂", "\u2581x", "\x00\x7f", "</s><pad>", "<extra_id_0>", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_a_token_is_a_byte(text):
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.encode(text) == [byte + 3 for byte in text.encode()]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.ByT5Tokenizer(), Tokenizer.of_bytes()
    for text in TEXTS[:5]:  # theirs reads special tokens in text
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert [ours.pad, ours.eos, ours.unk] == [theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id]
    assert list(ours.sentinels) == [theirs.convert_tokens_to_ids(f"<extra_id_{n}>") for n in range(100)]


def test_an_export_has_the_384_entries_of_byt5_and_encodes_alike():
    tokenizer = Tokenizer.of_bytes()
    used = tokenizer.used_ids(("pad", "eos"), sentinels=True)
    assert used.tolist() == list(range(384))
    made = convert(tokenizer, used, Frame("$A eos", "$A eos $B eos"))
    made.encode_special_tokens = True  # as text

    def encode(text):
        return made.encode(text, add_special_tokens=False).ids

    assert disagreements(SimpleNamespace(encode=encode, decode=made.decode), tokenizer) == []
    assert tokenizer.text_bytes.sum() == 256 and tokenizer.text_bytes[3:259].tolist() == [1] * 256


def test_bytes_are_prepared_and_trained_on(tmp_path, capsys):
    lines = [{"text": f"Zeile {n}: déjà vu, {n * n} " * 4} for n in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("tokenizer.model_type=byte", "valid_fraction=0.2", "num_workers=1", f"output={tmp_path}/out")
    assert prepare(f"corpus.inputs=[{tmp_path}/in.jsonl]", *options) == 0
    manifest = load_manifest(tmp_path / "out")
    reader = TextReader(manifest, "train")
    found = bytes((np.asarray(reader.read_document(0, 0, 0).tokens) - 3).astype(np.uint8)).decode()
    assert found in [line["text"] for line in lines]
    assert manifest.splits["train"].tokens + manifest.splits["valid"].tokens == sum(
        len(x["text"].encode()) for x in lines
    )
    shape = ("model=byt5_small", "model.num_decoder_layers=1", "model.head_dim=16", "model.intermediate_size=32")
    run = (*TINY[1:], *shape, "objective=span_corruption", "objective.mean_span_length=20", "model.max_seq_len=128")
    assert (
        command("pretraining.train", *run, "train.steps=2", f"data.path={tmp_path}/out", f"run_dir={tmp_path}/r") == 0
    )
    assert sorted(metrics(tmp_path / "r")) == [1, 2]
    assert prepare(f"corpus.inputs=[{tmp_path}/in.jsonl]", *options, "tokenizer.vocab_size=300") == 2
    assert "tokenizer.vocab_size has no effect" in capsys.readouterr().err
