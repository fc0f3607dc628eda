"""A SentencePiece model whose decoding reproduces any text byte for byte: escaping, training, encoding."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.native_tokens import known_names
from data_pipeline.tokenizers.sentences import find_starts

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

# SentencePiece keeps some characters for itself: U+2581 is its space, U+2585 its mark of the unknown, tab and
# NUL bound the strings of its trainers (no piece may hold them), U+001F is lost by the trainer, newlines at a
# line's end are stripped. Each is replaced by a private-use character; one of these that stands in a text is
# prefixed with _ESCAPE.
_ESCAPE = "\uee00"
_NEWLINE = "\uee03"
_STAND_INS = {
    "\0": "\uee01",
    "\t": "\uee02",
    "\n": _NEWLINE,
    "\u2581": "\uee04",
    "\u2585": "\uee05",
    "\x1f": "\uee06",
}
_ORIGINALS = {v: k for k, v in _STAND_INS.items()}
_PRIVATE = re.compile("[\uee00-\uee06]")
_ESCAPED = re.compile("\uee00([\uee00-\uee06])|([\uee01-\uee06])")
# A line with the blank lines after it is encoded by itself: three times faster for BPE than a long text.
_UNIT = re.compile(f"[^{_NEWLINE}]*{_NEWLINE}+|[^{_NEWLINE}]+")
_TRAINING_LINE_CHARS = 4000  # the BPE trainer has 16 bits for a position inside a word

# Peak memory of training beside the sample, bytes per byte of sample; with sentencepiece 0.2.3 on Linux, by
#   python -m benchmarks.tokenizer_memory bpe 8192 10 FOLDER
# BPE: novels 6, Python sources 14, Chinese without spaces 30; unigram: 21, 27, 22. For samples of one
# megabyte: BPE 17 to 23, unigram 25 to 27. The largest of each, rounded up:
_MEMORY_FACTOR = {"bpe": 32, "unigram": 30}


def escape(text: str) -> str:
    """`text` without the characters that SentencePiece keeps for itself; `unescape` undoes it."""
    if not text.isascii():
        text = _PRIVATE.sub(lambda m: _ESCAPE + m.group(), text)
    for character, stand_in in _STAND_INS.items():
        if character in text:
            text = text.replace(character, stand_in)
    return text


def unescape(text: str) -> str:
    """The inverse of `escape`; an escape character that escapes nothing stays."""
    if _ESCAPE in text:
        return _ESCAPED.sub(lambda m: m.group(1) or _ORIGINALS[m.group(2)], text)
    for stand_in, character in _ORIGINALS.items():
        if stand_in in text:
            text = text.replace(stand_in, character)
    return text


def training_memory_bytes(model_type: str, sample_bytes: int) -> int:
    """An upper estimate of what `train` takes beside the sample itself."""
    return _MEMORY_FACTOR[model_type] * sample_bytes


def train(texts: Iterable[str], model_type: str, vocab_size: int) -> bytes:
    """A BPE or unigram model of exactly `vocab_size` pieces, the same bytes for the same texts.

    Raises InputError where the texts do not support that size.
    """
    model = _train(
        _training_lines(texts),
        model_type,
        vocab_size,
        {
            "byte_fallback": True,
            "character_coverage": 0.9995,
            "required_chars": _STAND_INS["\n"] + _STAND_INS["\t"],
            "allow_whitespace_only_pieces": True,
        },
    )
    return _with_round_scores(model) if model_type == "unigram" else model


def _with_round_scores(model: bytes) -> bytes:
    """Piece scores as multiples of 1/256, so that sums of them are exact in fp32 (up to 65536).

    Segmentations into the same pieces in another order have the same score: with other scores, rounding would
    choose among them, and the exported tokenizer, which adds in fp64, would choose differently.
    """
    proto = read_model(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * 256) / 256
    return proto.SerializeToString(deterministic=True)


def read_model(data: bytes) -> ModelProto:
    """-> the model as a protobuf message."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(data)
    return proto


def train_characters(characters: dict[str, int], vocab_size: int) -> bytes:
    """A model whose pieces are the `characters` (with their counts); at most `vocab_size` pieces.

    Raises InputError that names the characters for which there is no room.
    """
    escaped = set(escape("".join(characters))) | {" "}
    room = vocab_size - 4
    if len(escaped) > room:
        by_count = sorted(characters, key=lambda c: (-characters[c], c))
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} leaves {len(escaped) - room} characters of the corpus "
            f"uncovered: {describe_characters(by_count[max(room, 0) :])}; "
            f"tokenizer.vocab_size={len(escaped) + 4} covers all"
        )
    ordered = "".join(sorted(escaped))
    lines = (ordered[i : i + 1000] + _NEWLINE for i in range(0, len(ordered), 1000))
    options = {"character_coverage": 1.0, "hard_vocab_limit": False}
    return _train(lines, "char", len(escaped | {_NEWLINE}) + 4, options)


def describe_characters(characters: Sequence[str], shown: int = 20) -> str:
    """The first `shown` characters, each as itself and as its code point."""
    names = [f"{c!r} (U+{ord(c):04X})" for c in characters[:shown]]
    more = f" and {len(characters) - shown} more" if len(characters) > shown else ""
    return ", ".join(names) + more


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for unit in _UNIT.findall(escape(text)):
            for start in range(0, len(unit), _TRAINING_LINE_CHARS):
                yield unit[start : start + _TRAINING_LINE_CHARS]


def _train(lines: Iterator[str], model_type: str, vocab_size: int, options: dict[str, Any]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=1 << 20,
            minloglevel=2,
            num_threads=1,  # with more, the order of equally frequent pieces depends on timing
            **options,
        )
    except RuntimeError as error:
        raise InputError(_explain(str(error), vocab_size)) from error
    return model.getvalue()


def _explain(error: str, vocab_size: int) -> str:
    too_high = re.search(r"too high .*<= (\d+)", error)
    too_low = re.search(r"required_chars\. \d+ vs (\d+)", error)
    if too_high:
        return (
            f"tokenizer.vocab_size={vocab_size} is larger than this corpus supports: "
            f"at most {too_high.group(1)} are possible"
        )
    if too_low:
        return (
            f"tokenizer.vocab_size={vocab_size} is too small for the characters and bytes of this corpus: "
            f"at least {too_low.group(1)} are needed"
        )
    return f"SentencePiece cannot train a tokenizer of tokenizer.vocab_size={vocab_size} on this corpus: {error}"


class SentencePieceModel:
    """Encodes and decodes with a .model file; `escaped` where it was trained here, on escaped text."""

    def __init__(self, data: bytes, escaped: bool) -> None:
        import sentencepiece

        self.data, self.escaped = data, escaped
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
            self.size = self._processor.get_piece_size()
            assert len(self.pieces) <= self.size  # read here, where a piece that is no UTF-8 can be reported
        except (RuntimeError, UnicodeDecodeError) as error:
            raise InputError("not a SentencePiece model") from error
        self._unknown = self._processor.unk_id()

    @property
    def pieces(self) -> dict[str, int]:
        """The id of every piece, control pieces included."""
        return {self._processor.id_to_piece(i): i for i in range(self.size)}

    def special_ids(self, named: Mapping[str, str]) -> dict[str, int]:
        """Role -> id of the special tokens that it has: those `named`, its own pad, bos, eos and unk, and control
        pieces under a usual name (a model trained here has none)."""
        processor = self._processor
        found = {role: processor.piece_to_id(name) for role, name in named.items()}
        own = {
            "pad": processor.pad_id(),
            "bos": processor.bos_id(),
            "eos": processor.eos_id(),
            "unk": processor.unk_id(),
        }
        found = {**{role: i for role, i in own.items() if i >= 0}, **found}
        control = {piece: i for piece, i in self.pieces.items() if processor.is_control(i)}
        for role, names in known_names().items():
            ids = [control[name] for name in names if name in control]
            if ids:
                found.setdefault(role, ids[0])
        return found

    def protect(self, special_ids: Collection[int]) -> SentencePieceModel:
        """Control pieces are never found in a text. Raises InputError where another kind of piece is to be special."""
        processor = self._processor
        wrong = [i for i in special_ids if not (processor.is_control(i) or processor.is_unknown(i))]
        if wrong:
            raise InputError(
                f"tokenizer.special_tokens: {processor.id_to_piece(wrong[0])!r} is no control piece of the "
                "SentencePiece model: text may become it"
            )
        return self

    def encode(self, text: str) -> list[int]:
        """Raises InputError that names the characters that a character model does not cover."""
        if not self.escaped:
            return self._processor.encode(text)
        ids: list[int] = []
        for part in self._processor.encode(_UNIT.findall(escape(text)), num_threads=1):
            ids += part
        if self._unknown in ids:
            self._refuse(text)
        return ids

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
        """-> ids, first token of each sentence. Sentence ends are looked for in what the pieces spell."""
        ids = self.encode(text)
        ends = np.cumsum(self._token_sizes[ids], dtype=np.int64)
        spelled = text.encode()
        # A normalized text, or an escaped character in byte pieces, is spelled with another number of bytes.
        if not self.escaped or (ids and ends[-1] != len(spelled)):
            spelled = b"".join([self.token_bytes[i] for i in ids])
        return ids, find_starts(spelled, ends)

    def decode(self, ids: list[int]) -> str:
        text = self._processor.decode(ids)
        return unescape(text) if self.escaped else text

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each piece stands for, as UTF-8."""
        return [self._bytes_of(i) for i in range(self.size)]

    @cached_property
    def _token_sizes(self) -> npt.NDArray[np.int32]:
        return np.array([len(s) for s in self.token_bytes], dtype=np.int32)

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """bool [size], True for the pieces that stand for text."""
        kinds = (self._processor.is_control, self._processor.is_unknown, self._processor.is_unused)
        return np.array([not any(is_kind(i) for is_kind in kinds) for i in range(self.size)])

    def _bytes_of(self, index: int) -> bytes:
        piece = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes([int(piece[1:-1], 16)])
        spelled = piece.replace("\u2581", " ")
        return (unescape(spelled) if self.escaped else spelled).encode()

    def _refuse(self, text: str) -> None:
        missing = [c for c in sorted(set(text)) if self._unknown in self._processor.encode(escape(c))]
        raise InputError(f"the tokenizer has no piece for {describe_characters(missing)}")
