"""Bytes that each token stands for: those of a text's tokens are the text's, also where a token is a part of a
character. valid_bits_per_byte divides by them."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_pipeline.tokenizers.byte_pieces import byte_alphabet
from data_pipeline.tokenizers.tokenizer import Tokenizer

TEXT = ["The quick brown fox, naïve as ever.", "日本語のテキスト", "Привет, мир! 😀"] * 5
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(TEXT)


def byte_level(decoder):
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(TEXT, trainer)
    fast.add_tokens(["日本", "a b"])  # added tokens are text, not bytes
    return fast


def byte_fallback():
    """As Llama 2's tokenizer.json."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    fast = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


MADE = {
    "byte_level": lambda: byte_level(decoders.ByteLevel()),
    "byte_level_in_a_sequence": lambda: byte_level(decoders.Sequence([decoders.ByteLevel()])),
    "byte_fallback": byte_fallback,
}


@pytest.mark.parametrize("kind", MADE)
def test_the_bytes_of_the_tokens_are_those_of_the_text(kind, tmp_path):
    MADE[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @settings(max_examples=200, deadline=None)
    @given(TEXTS.filter(lambda text: "▁" not in text))
    def check(text):
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.backend.token_bytes[i] for i in ids) == text.encode()
        assert tokenizer.text_bytes[ids].sum() == len(text.encode())

    check()
    assert tokenizer.text_bytes[tokenizer.eos] == 0


def test_the_alphabet_of_bytes_is_the_one_of_tokenizers():
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ") and byte_alphabet()["Ċ"] == ord("\n")
