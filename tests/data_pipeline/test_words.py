import numpy as np
import pytest

from data_pipeline.tokenizers.tokenizer import Tokenizer
from data_pipeline.tokenizers.words import word_pieces

TEXT = ["Hello there, some_value = other[3]; it isn't naïve.", "the cat sat on the mat, said the other cat"] * 20


def words_of(tokenizer, text):
    ids = np.array(tokenizer.encode(text))
    cuts = np.flatnonzero(tokenizer.words.starts(ids))
    return [tokenizer.decode(part).strip() for part in np.split(ids, cuts[1:])]


def test_pieces():
    """A blank or a sign begins a word, and so does what follows a sign; letters and parts of characters join."""
    token_bytes = [b"", b" the", b"cat", b",", b"_x", b"\n", "é".encode(), b"\xc3", "中".encode(), b"f("]
    pieces = word_pieces(token_bytes, 12)
    assert pieces.begins.tolist() == [True, True, False, True, False, True, False, False, True, False, True, True]
    assert pieces.ends.tolist() == [True, False, False, True, False, True, False, False, True, True, True, True]
    tokens = np.array([2, 1, 2, 4, 3, 2, 7, 8, 2, 9, 2, 11, 2])
    assert np.flatnonzero(pieces.starts(tokens)).tolist() == [0, 1, 4, 5, 7, 8, 10, 11, 12]
    assert len(pieces.starts(tokens[:0])) == 0


def test_a_part_of_a_character_behind_a_sign_goes_on_with_it():
    """A piece of a sign and the first byte of a letter does not end a word; one of the rest and a sign begins none."""
    pieces = word_pieces(["«".encode() + b"\xc3", b"\xa9,", b"\xa9", b",a"], 4)
    assert pieces.begins.tolist() == [True, False, False, True]
    assert pieces.ends.tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
def test_hugging_face_tokenizers(kind, tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "byte_level":
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert words_of(ours, "the other cat, said") == ["the", "other", "cat", ",", "said"]
    own = [tokenizer.token_to_id(token) for token in special]
    assert not ours.is_text[own].any() and not ours.is_text[[ours.mask, ours.cls, ours.bos]].any()
    assert ours.is_text.sum() == tokenizer.get_vocab_size() - len(special)
