"""tokenizer.model_type=byte: ByT5's ids (tests/hub/test_t5_relatives.py has what is prepared and trained with them)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from data_pipeline.tokenizers.export import Frame, convert, disagreements
from data_pipeline.tokenizers.tokenizer import Tokenizer

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
