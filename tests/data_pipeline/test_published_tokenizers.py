"""Tokenizers from elsewhere: their own special tokens are used, and no text becomes one."""

import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import prepare

TEXT = "The quick <b>brown</b> fox jumps; a</s>b <s>struck</s> [MASK] it is.\n"
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "[MASK]"]


def made(kind, special=SPECIAL):
    """A tokenizer.json whose model has the special tokens among its own pieces, and words split at spaces alone."""
    model, trainer = {
        "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", show_progress=False)),
        "bpe": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=300, show_progress=False)),
        "wordpiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=300)),
        "wordlevel": (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(vocab_size=300)),
    }[kind]
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = pre_tokenizers.Metaspace() if kind == "unigram" else pre_tokenizers.WhitespaceSplit()
    fast.decoder = decoders.Metaspace() if kind == "unigram" else None
    trainer.special_tokens = special
    fast.train_from_iterator([TEXT] * 20, trainer)
    return fast


def opened(fast, folder, **files):
    folder.mkdir(exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece", "wordlevel"])
def test_no_text_becomes_a_special_id(kind, tmp_path):
    fast = made(kind)
    tokenizer = opened(fast, tmp_path)
    special = {fast.token_to_id(name) for name in SPECIAL} - {tokenizer.unk}
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.mask) == tuple(
        fast.token_to_id(name) for name in ("<pad>", "</s>", "<s>", "[MASK]")
    )
    pieces = st.sampled_from([*SPECIAL, "a", " ", "b", "<", ">", "s", "</", "\ufdd0", "\n"])

    @settings(max_examples=60, deadline=None)
    @given(st.lists(pieces, max_size=12).map("".join))
    def check(text):
        ids, _ = tokenizer.encode_with_starts(text)
        assert not special & set(ids) and ids == tokenizer.encode(text)

    check()
    fast.encode_special_tokens = True
    for text in ("The quick fox", "it is.\n"):
        assert tokenizer.encode(text) == fast.encode(text, add_special_tokens=False).ids


def test_special_tokens_count_before_ordinary_pieces_of_a_usual_name(tmp_path):
    """As Gemma's file: <bos> and <eos> are special, <s> and </s> are HTML."""
    fast = made("bpe", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    fast.add_tokens(["<s>", "</s>"])
    tokenizer = opened(fast, tmp_path)
    found = (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.unk, tokenizer.mask)
    assert found == tuple(range(5))
    html = [fast.token_to_id(name) for name in ("<s>", "</s>")]
    assert set(html) <= set(tokenizer.encode("a <s> b </s>")) and tokenizer.is_text[html].all()


def test_the_map_of_a_folder_counts_before_names(tmp_path):
    fast = made("bpe", ["[PAD]", "<|im_end|>", "<|endoftext|>", "<s>", "<unk>"])
    named = {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>"},
        "cls_token": "none",
    }
    tokenizer = opened(fast, tmp_path, tokenizer_config=named, special_tokens_map={"eos_token": "[PAD]"})
    assert (tokenizer.eos, tokenizer.pad, tokenizer.bos) == (1, 2, 3)
    assert tokenizer.cls >= fast.get_vocab_size()
    assert Tokenizer.from_file(str(tmp_path)).fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")  # the map is not needed any more
    assert again.fingerprint == tokenizer.fingerprint and again.special_ids == tokenizer.special_ids


def test_keys_count_before_all_and_are_checked(tmp_path):
    fast = made("bpe", ["<unk>"])
    fast.add_tokens(["@open", "@close"])
    opened(fast, tmp_path)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path, {"bos": "@open", "eos": "@close"})
    assert (tokenizer.bos, tokenizer.eos) == (fast.token_to_id("@open"), fast.token_to_id("@close"))
    assert not {tokenizer.bos, tokenizer.eos} & set(tokenizer.encode("a @open b@close"))
    with pytest.raises(InputError, match="begin is not a role"):
        Tokenizer.from_file(path, {"begin": "@open"})
    with pytest.raises(InputError, match=r"bos='@x' is not a piece"):
        Tokenizer.from_file(path, {"bos": "@x"})


def test_only_what_is_lacking_is_added_and_reported(tmp_path, capsys):
    fast = made("unigram", ["<pad>", "</s>", "<unk>"])
    fast.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(100))])
    tokenizer = opened(fast, tmp_path / "hub")
    size = fast.get_vocab_size()
    assert list(tokenizer.sentinels) == [size - 1 - n for n in range(100)]
    assert (tokenizer.bos, tokenizer.mask, tokenizer.total_size) == (size, size + 1, size + 7)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT * 2)
    output = f"output={tmp_path}/prepared"
    assert prepare(f"corpus.inputs=[{tmp_path}/*.txt]", output, f"tokenizer.path={tmp_path}/hub", "num_workers=0") == 0
    told = capsys.readouterr().out
    assert "pad '<pad>', eos '</s>', unk '<unk>', 100 sentinels; added after its" in told
    assert "pieces: bos, mask, cls, sep, fim_prefix, fim_middle, fim_suffix\n" in told
    assert Tokenizer.load(tmp_path / "prepared" / "tokenizer").special_ids == tokenizer.special_ids


def test_control_pieces_of_a_sentencepiece_model_are_its_special_tokens(tmp_path):
    """As ALBERT's spiece.model."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer.from_file(str(tmp_path / "spiece.model"))
    pieces = tokenizer.pieces
    assert (tokenizer.cls, tokenizer.sep, tokenizer.mask) == (pieces["[CLS]"], pieces["[SEP]"], pieces["[MASK]"])
    assert tokenizer.pad == len(pieces) and tokenizer.mask not in tokenizer.encode("[MASK]")
    with pytest.raises(InputError, match="no control piece"):
        Tokenizer.from_file(str(tmp_path / "spiece.model"), {"eos": "s"})
