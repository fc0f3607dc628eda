from __future__ import annotations

import inspect
import json
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.sentencepiece_model import escape, unescape
from data_pipeline.tokenizers.tokenizer import Tokenizer

PROSE = [
    inspect.getsource(textwrap),
    *(f"The {a} fox runs!  Is it {a}?\n\n\tx = y\n" for a in ("quick", "lazy")),
]
HARD = [
    "",
    " ",
    "\n",
    "\r\n a\r",
    "\t\tx",
    "  two  spaces  ",
    "<unk> <s></s><pad>",
    "<0x41>",
    "\0\x01\x1f\x7f",
    "\ufeffmark",
    "e\u0301\u0301",
    "😀👩‍👩‍👧 中文。日本語",
    "\u2581 \u2581a\u2585",
    "\ufffd",
    "\ue000\uee00\uee03\uee06\uee00",
    "a\n\n\n b",
    "\u2028\u0085\u00a0\u3000",
    "⁇",
]
anything = st.text(st.characters(exclude_categories=["Cs"]))
awkward = st.text(st.sampled_from(" \n\t\r\0\x1f\u2581\u2585\uee00\uee01\uee03\uee06a.😀\ufeff"))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(PROSE, request.param, 400)


@pytest.mark.parametrize("text", HARD)
def test_gives_hard_text_back(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(st.one_of(anything, awkward))
def test_gives_any_text_back_and_starts_sentences_inside_it(trained: Tokenizer, text: str) -> None:
    ids, starts = trained.encode_with_starts(text)
    assert ids == trained.encode(text)
    assert trained.decode(ids) == text
    assert max(ids, default=0) < trained.vocab_size and not {0, 1, 2, 3} & set(ids)
    assert starts.tolist() == sorted({0, *starts.tolist()} if ids else set())
    assert all(start < len(ids) for start in starts)


@given(st.one_of(anything, awkward))
def test_escaping_is_undone(text: str) -> None:
    escaped = escape(text)
    assert not set(escaped) & set("\0\t\n\x1f\u2581\u2585")
    assert unescape(escaped) == text


def test_special_ids_follow_the_pieces(trained: Tokenizer) -> None:
    assert (trained.pad, trained.bos, trained.eos, trained.unk) == (0, 1, 2, 3)
    assert trained.vocab_size == 400
    following = [
        trained.mask,
        trained.cls,
        trained.sep,
        *trained.sentinels,
        trained.fim_prefix,
        trained.fim_middle,
        trained.fim_suffix,
    ]
    assert following == list(range(400, 400 + 106)) and trained.total_size == 506
    assert trained.decode([trained.bos, *trained.encode("a b"), *following, trained.eos]) == "a b"


def test_same_texts_give_the_same_model_whatever_the_run() -> None:
    assert Tokenizer.train(PROSE, "bpe", 400).fingerprint == Tokenizer.train(PROSE, "bpe", 400).fingerprint


def test_runs_of_spaces_and_line_ends_are_pieces(trained: Tokenizer) -> None:
    assert len(trained.encode("        ")) <= 4
    assert trained.encode("\n") != [] and len(trained.encode("\n")) == 1 and len(trained.encode("\t")) == 1


def test_sentences_start_after_marks_and_lines(trained: Tokenizer) -> None:
    text = "One is. Two is! 3.5 no?\n\n\n  Three\n你好。再见！”好"
    ids, starts = trained.encode_with_starts(text)
    parts = [trained.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert parts == ["One is.", " Two is!", " 3.5 no?\n\n\n", "  Three\n", "你好。", "再见！”", "好"]
    assert starts.dtype == np.int64


def test_saved_folder_is_loaded_and_a_changed_one_refused(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.encode(HARD[-4]) == trained.encode(HARD[-4])
    for path in ("tokenizer", "tokenizer/tokenizer.model"):
        assert Tokenizer.from_file(str(tmp_path / path)).fingerprint == trained.fingerprint
    Tokenizer.train(PROSE, "bpe", 410).save(tmp_path / "other")
    (tmp_path / "other/tokenizer.model").replace(tmp_path / "tokenizer/tokenizer.model")
    with pytest.raises(InputError, match="not the one"):
        Tokenizer.load(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="no tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocabulary_that_the_corpus_does_not_support(model_type: str) -> None:
    with pytest.raises(InputError, match=r"vocab_size=5000 is larger .* at most (\d+)") as error:
        Tokenizer.train(PROSE, model_type, 5000)  # type: ignore[arg-type]
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert Tokenizer.train(PROSE, model_type, most).vocab_size == most  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too small"):
        Tokenizer.train(PROSE, model_type, 100)  # type: ignore[arg-type]


def test_character_model() -> None:
    text = "".join(HARD)
    tokenizer = Tokenizer.from_characters(Counter(text), 200)
    assert tokenizer.vocab_size <= 200
    assert all(tokenizer.decode(tokenizer.encode(t)) == t for t in HARD)
    with pytest.raises(InputError, match=r"'ß' \(U\+00DF\)"):
        tokenizer.encode("Straße")
    with pytest.raises(InputError, match=r"uncovered: .*vocab_size=\d+ covers all"):
        Tokenizer.from_characters(Counter(text), 20)
    assert Tokenizer.from_characters(Counter("aaab"), 8).vocab_size <= 8


@settings(max_examples=50, deadline=None)
@given(anything.filter(len))
def test_character_model_gives_any_text_back(text: str) -> None:
    tokenizer = Tokenizer.from_characters(Counter(text), 1000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ready_sentencepiece_model(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(PROSE).splitlines()),
        model_prefix=str(tmp_path / "ready"),
        vocab_size=200,
        pad_id=-1,
        unk_id=0,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    tokenizer = Tokenizer.from_file(str(tmp_path / "ready.model"))
    size = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "ready.model")).get_piece_size()
    assert (tokenizer.unk, tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 2, size)
    assert tokenizer.vocab_size == size + 1 and tokenizer.mask == size + 1
    ids, starts = tokenizer.encode_with_starts("The fox runs. The dog stops.")
    assert ids == tokenizer.encode("The fox runs. The dog stops.") and len(starts) == 2
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("The fox") == tokenizer.encode("The fox")


def test_ready_hugging_face_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        PROSE,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    size = fast.get_vocab_size()
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) == (0, 0, size, size + 1)
    text = "The fox. A dog<|endoftext|>\n 😀中"
    ids, starts = tokenizer.encode_with_starts(text)
    assert 0 not in ids and tokenizer.decode(ids) == text
    parts = [tokenizer.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert parts == ["The fox.", " A dog<|endoftext|>\n", " 😀中"]
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.model", b"no model", "not a SentencePiece model"),
        ("x.json", b"{}", "tokenizer.json"),
        ("x.bin", b"", "neither"),
    ],
)
def test_broken_ready_tokenizer(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.from_file(str(tmp_path / name))
    with pytest.raises(InputError, match="No such file"):
        Tokenizer.from_file(str(tmp_path / "missing.model"))


def test_newer_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_info.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="format 1"):
        Tokenizer.load(tmp_path)
