"""model.new_rows: a run with another tokenizer than the published model that it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.init_from import HuggingFaceFolder
from pretraining.models.bert.config import BertConfig
from pretraining.models.shapes import shapes_of
from tests.building import UsualHeads, build, vocabulary_for
from tests.helpers import TINY, command, prepare, valid_losses

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 32}
GENERAL = "the cat sat on the mat and the dog ran after the ball in the green garden of the old house "
DOMAIN = "the antibody binds the receptor protein and the enzyme of the membrane in the old cell "


def save_tokenizer(path: Path, text: str, size: int) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer.json that was trained on a text, with all letters."""
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = (
        tokenizers.normalizers.BertNormalizer(),
        tokenizers.pre_tokenizers.BertPreTokenizer(),
    )
    made.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = " ".join(f"{letter} x{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    made.train_from_iterator([text * 20, letters], trainer)
    made.save(str(path))
    return made


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as others publish it, whose tokenizer knows general text."""
    folder = tmp_path_factory.mktemp("published")
    fast = save_tokenizer(folder / "tokenizer.json", GENERAL, 130)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=32,
        vocab_size=fast.get_vocab_size(),
    )
    model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("domain") / "tokenizer.json"
    save_tokenizer(path, DOMAIN, 120)
    return path


def started(folder: Path, tokenizer: Tokenizer, new_rows: str | None):
    config = BertConfig(name="bert", **SHAPE)
    shapes = shapes_of(config, vocabulary_for(config, tokenizer.total_size), UsualHeads(pairs=False))
    opened = HuggingFaceFolder(str(folder), shapes, tokenizer.total_size, tokenizer, new_rows)
    model, before = (build(config, tokenizer.total_size, pairs=False) for _ in range(2))
    for each in (model, before):
        each.initialize(1)
    opened.load_into(model)
    return opened, model, before


def test_new_rows_are_the_means_of_their_old_pieces(published, domain):
    tokenizer, theirs = (
        Tokenizer.from_file(str(domain)),
        tokenizers.Tokenizer.from_file(str(published / "tokenizer.json")),
    )
    opened, model, before = started(published, tokenizer, "mean")
    hub = transformers.BertForMaskedLM.from_pretrained(published)
    old = hub.bert.embeddings.word_embeddings.weight.detach().numpy()
    bias = hub.cls.predictions.bias.detach().numpy()
    rows, biases = model.token_embedding.weight.detach().numpy(), model.head.decoder.bias.detach().numpy()
    vocabulary, known = tokenizers.Tokenizer.from_file(str(domain)).get_vocab(), theirs.get_vocab()
    means = 0
    for piece, i in vocabulary.items():
        if piece in known:
            assert (rows[i] == old[known[piece]]).all() and biases[i] == bias[known[piece]]
        else:
            ids = theirs.encode(piece.removeprefix("##")).ids
            assert np.abs(rows[i] - old[ids].mean(0)).max() < 1e-6 and abs(biases[i] - bias[ids].mean()) < 1e-6
            means += len(ids) > 1
    assert means > 5 and "##ody" not in known
    added = range(len(vocabulary), tokenizer.total_size)  # sentinels and the like, which spell nothing
    assert (rows[added] == before.token_embedding.weight.detach().numpy()[added]).all()
    assert not rows[tokenizer.total_size :].any()
    assert opened.notes()[0].endswith(f"{len(opened.means)} of them means of rows")


def test_normal_draws_them_as_a_new_models(published, domain):
    tokenizer = Tokenizer.from_file(str(domain))
    opened, model, before = started(published, tokenizer, "normal")
    new = [i for i in range(tokenizer.total_size) if i not in opened.rows]
    assert len(new) > 20 and torch.equal(model.token_embedding.weight[new], before.token_embedding.weight[new])
    assert "means" not in opened.notes()[0]


def test_ranks_fill_their_part_of_the_rows(published, domain):
    tokenizer = Tokenizer.from_file(str(domain))
    _, whole, _ = started(published, tokenizer, "mean")
    for rank in (0, 1):
        opened, model, before = started(published, tokenizer, "mean")
        half = len(before.token_embedding.weight) // 2
        part = torch.nn.Parameter(before.token_embedding.weight[rank * half :][:half].detach().clone())
        part.tensor_model_parallel, part.partition_dim = True, 0
        model.token_embedding.weight = model.head.decoder.weight = part
        model.layers.size, model.layers.rank = 2, rank
        model.head.decoder.bias = torch.nn.Parameter(before.head.decoder.bias[rank * half :][:half].detach().clone())
        model.head.decoder.bias.tensor_model_parallel, model.head.decoder.bias.partition_dim = True, 0
        opened.load_into(model)
        assert torch.equal(part, whole.token_embedding.weight[rank * half :][:half])


def test_another_tokenizer_is_refused_unless_it_is_asked_for(published, domain, tmp_path):
    tokenizer = Tokenizer.from_file(str(domain))
    with pytest.raises(InputError, match=r"encodes .* differently .*; model\.new_rows=mean\|normal"):
        started(published, tokenizer, None)
    for file in published.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"no tokenizer\.json, by which model\.new_rows"):
        started(tmp_path, tokenizer, "mean")


def test_the_loss_before_the_first_step_is_the_published_models_on_the_domain(published, domain, tmp_path, capsys):
    """The evaluation at step 0: what a run of the domain is compared with."""
    lines = [{"text": f"{DOMAIN} {n}"} for n in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = (f"tokenizer.path={domain}", "valid_fraction=0.2", "num_workers=1")
    assert prepare(f"corpus.inputs=[{tmp_path}/in.jsonl]", f"output={tmp_path}/data", *options) == 0
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    run = (
        *TINY,
        "model=bert_debug",
        *shape,
        "objective=masked_lm",
        "objective.pairing=none",
        f"model.init_from={published}",
    )
    more = ("train.steps=20", "train.eval_every=20", "optimizer.lr=2e-3", f"data.path={tmp_path}/data")
    assert command("pretraining.train", *run, *more, f"run_dir={tmp_path}/r", "model.new_rows=mean") == 0
    losses = valid_losses(tmp_path / "r")
    assert losses[20] < losses[0]
    assert "of them means of rows" in capsys.readouterr().err
    assert command("pretraining.train", *TINY, "data.path=x", "model.new_rows=mean") == 2
    assert "model.new_rows has no effect with model.init_from=null" in capsys.readouterr().err
