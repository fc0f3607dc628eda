"""A Tokenizer as a Hugging Face tokenizer.json that encodes every text to the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.sentencepiece_model import _ESCAPE, _NEWLINE, _STAND_INS, SentencePieceModel, read_model
from data_pipeline.tokenizers.special_tokens import ALL, exported_sentinel
from data_pipeline.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

_SPACE = "\u2581"
_SPACES = (_SPACE, "\u0120")  # of SentencePiece and of byte-level pieces

# What tokenizers are known to disagree about; the last ones look like special tokens and like byte pieces.
EDGE_CASE_TEXTS = (
    "",
    " ",
    "  ",
    "   x",
    "x   ",
    "a     b",
    "\t",
    "\t\tx",
    "\n",
    "\n\n\nx\n",
    "x\r\ny",
    "\n \n  \n",
    " \n",
    "emoji \U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "中文字符，和标点。",
    "日本語 テキスト",
    "مرحبا",
    "e\u0301 é ﬁ ½ ㎏ \u212b",
    "\u2581",
    "a\u2581b \u2581 ",
    "\u2585",
    "\ufeffx",
    "\u200b",
    "\u00a0\u3000",
    "\0",
    "\x1f",
    "\x7f",
    "\ue000",
    "\uee00",
    "\uee00\uee03",
    "\uee01\uee06\uee00\uee00",
    "\U0010ffff",
    "<s>",
    "</s> <pad><unk>",
    "<mask> <extra_id_0>",
    "[MASK]",
    "<0x41>",
    "<0xE4>",
    "1234567890" * 3,
    "-" * 37,
    "=" * 80,
    "def f(x):\n\treturn x  # done\n\n\n",
    "it's “quoted” — isn't it…",
    "aaaaaaaaaaaaa",
    "ÀÉÎÕÜ ß ŁŻ",
    "Привет, мир!",
)


class Frame(NamedTuple):
    """How a family's tokenizer frames texts, in the words of tokenizers' TemplateProcessing: roles stand for their
    names, $A and $B for the texts, ":1" for the second token type. token_types: whether the model reads these.
    pads_left: where the token that stands for the text is the last one, so that padding must not stand behind it."""

    single: str
    pair: str
    token_types: bool = False
    pads_left: bool = False


Ids = npt.NDArray[np.int64]


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Id -> name in an exported vocabulary of every special token, in the order of the ids. A name that a piece of
    the vocabulary has already stands in more angle brackets."""
    pieces = {i: piece for piece, i in tokenizer.pieces.items()}
    names = {tokenizer.special_ids[token.role]: token.exported for token in ALL}
    names.update({i: exported_sentinel(n) for n, i in enumerate(tokenizer.sentinels)})
    names.update({i: name for name, i in tokenizer.languages.items()})
    taken = set(pieces.values())
    return {i: pieces[i] if i in pieces else _free(names[i], taken) for i in sorted(names)}


def exported_ids(tokenizer: Tokenizer, used: Ids | None = None) -> dict[int, int]:
    """Id -> id in an exported vocabulary, which holds the ids `used` (all where it is None) without gaps. Those of the
    tokenizer's own pieces stay."""
    return {int(i): n for n, i in enumerate(range(tokenizer.total_size) if used is None else used)}


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free(f"<{name}>", taken)


def convert(tokenizer: Tokenizer, used: Ids | None = None, frame: Frame | None = None) -> Any:
    """-> tokenizers.Tokenizer that gives every text the ids of `tokenizer`, numbered by `exported_ids`.

    Specials are read from a text unless `encode_special_tokens` is set on it, which tokenizer.json does not keep.
    """
    import tokenizers

    backend = tokenizer.backend
    if isinstance(backend, SentencePieceModel):
        made = _from_sentencepiece(backend)
    else:
        made = tokenizers.Tokenizer.from_buffer(backend.data)
        made.no_padding()
        made.no_truncation()
    numbers = exported_ids(tokenizer, used)
    names = special_tokens(tokenizer)
    special = {i: name for i, name in names.items() if i in numbers}
    marked = {token.content for token in made.get_added_tokens_decoder().values() if token.special}
    eats = _spans(tokenizer) if _spaces_begin_words(tokenizer) else set()
    made.add_special_tokens(
        [
            tokenizers.AddedToken(name, special=True, normalized=False, lstrip=i in eats)
            for i, name in special.items()
            if name not in marked
        ]
    )
    wrong = {name: made.token_to_id(name) for i, name in special.items() if made.token_to_id(name) != numbers[i]}
    assert not wrong, f"special tokens have other ids: {wrong}"
    if frame is not None:
        _add_frame(made, frame, {role: names[i] for role, i in tokenizer.special_ids.items() if i in numbers})
    return made


def _spans(tokenizer: Tokenizer) -> set[int]:
    """The ids that stand where pieces of text were: in "the <mask> dog" that is " cat", with its space."""
    return {tokenizer.mask, *tokenizer.sentinels}


def _spaces_begin_words(tokenizer: Tokenizer) -> bool:
    return any(len(piece) > 1 and piece[0] in _SPACES for piece in tokenizer.pieces)


def _add_frame(made: tokenizers.Tokenizer, frame: Frame, names: Mapping[str, str]) -> None:
    """names: role -> name."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    def template(words: str) -> list[str]:
        parts = [word.partition(":") for word in words.split()]
        return [f"{names.get(role, role)}:{kind or 0}" for role, _, kind in parts]

    roles = {word.partition(":")[0] for word in frame.pair.split()} - {"$A", "$B"}
    ids = [(names[role], made.token_to_id(names[role])) for role in sorted(roles)]
    framing = TemplateProcessing(single=template(frame.single), pair=template(frame.pair), special_tokens=ids)
    offsets = made.post_processor  # a ByteLevel one only moves offsets to where words begin
    made.post_processor = Sequence([offsets, framing]) if isinstance(offsets, ByteLevel) else framing


def tokenizer_config(
    tokenizer: Tokenizer, max_length: int, used: Ids | None = None, frame: Frame | None = None
) -> dict[str, Any]:
    """tokenizer_config.json. Here '<mask>' in a text is the mask, as transformers' users expect; texts are prepared for
    training without ever being read so."""
    numbers = exported_ids(tokenizer, used)
    specials = {i: name for i, name in special_tokens(tokenizer).items() if i in numbers}
    roles = {
        f"{token.role}_token": specials[tokenizer.special_ids[token.role]]
        for token in ALL
        if token.in_transformers and tokenizer.special_ids[token.role] in specials
    }
    types = ["token_type_ids"] if frame is not None and frame.token_types else []
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "extra_special_tokens": [name for name in specials.values() if name not in roles.values()],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "padding_side": "left" if frame is not None and frame.pads_left else "right",
    }


def _from_sentencepiece(backend: SentencePieceModel) -> Any:
    import tokenizers

    proto = read_model(backend.data)
    made = tokenizers.Tokenizer(_unigram(proto) if proto.trainer_spec.model_type == 1 else _bpe(proto))
    made.normalizer = tokenizers.normalizers.Sequence(_normalizers(proto, backend.escaped))
    made.decoder = tokenizers.decoders.Sequence(_decoders(proto, backend.escaped))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(_splitters(proto, backend.escaped))
    return made


def _splitters(proto: ModelProto, escaped: bool) -> list[Any]:
    """The units of sentencepiece_model; and characters of reserved pieces' names that are no pieces themselves.

    These are byte pieces of their own in any case. Alone, a unigram model cannot find '<0x41>' in the text '<0x41>'.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    splitters = [Split(Regex(f"[^{_NEWLINE}]*{_NEWLINE}+|[^{_NEWLINE}]+"), "isolated")] if escaped else []
    normal = {piece.piece for piece in proto.pieces if piece.type == piece.NORMAL}
    reserved = {character for piece in proto.pieces if piece.type != piece.NORMAL for character in piece.piece}
    return splitters + [Split(character, "isolated") for character in sorted(reserved - normal)]


def _bpe(proto: ModelProto) -> Any:
    """Every way to make a piece of two others is a merge, the pieces in the order of their scores. A character model
    is one without merges."""
    import tokenizers

    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges: list[tuple[str, str]] = []
    if proto.trainer_spec.model_type == 2:
        for piece in sorted(normal, key=lambda p: -normal[p]):
            merges += _splits(piece, normal)
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    return tokenizers.models.BPE(
        vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=proto.trainer_spec.byte_fallback
    )


def _splits(piece: str, normal: dict[str, float]) -> list[tuple[str, str]]:
    found = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    return [(left, right) for left, right in found if {left, right} <= normal.keys()]


def _unigram(proto: ModelProto) -> Any:
    """SentencePiece keeps control and byte pieces out of its search; here a score that never wins does it, where
    their characters are pieces (see `_splitters` for where they are not)."""
    import tokenizers

    lowest = min(piece.score for piece in proto.pieces if piece.type == piece.NORMAL)
    vocab = [(piece.piece, piece.score if piece.type == piece.NORMAL else 100 * lowest) for piece in proto.pieces]
    return tokenizers.models.Unigram(vocab, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _normalizers(proto: ModelProto, escaped: bool) -> list[Any]:
    """`escape` of sentencepiece_model, then what the model itself does to a text."""
    from tokenizers import Regex
    from tokenizers.normalizers import Precompiled, Prepend, Replace, Strip

    spec = proto.normalizer_spec
    steps: list[Any] = []
    if escaped:
        for private in (_ESCAPE, *_STAND_INS.values()):
            steps.append(Replace(private, _ESCAPE + private))
        steps += [Replace(character, stand_in) for character, stand_in in _STAND_INS.items()]
    if spec.precompiled_charsmap:
        steps.append(Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [Strip(left=True, right=True), Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(Prepend(" "))
    return [*steps, Replace(" ", _SPACE)]


def _decoders(proto: ModelProto, escaped: bool) -> list[Any]:
    """`unescape`: a stand-in after an even number of escapes is undone, after an odd one it stands for itself."""
    from tokenizers import Regex
    from tokenizers.decoders import ByteFallback, Fuse, Replace, Strip

    steps: list[Any] = [Replace(_SPACE, " "), ByteFallback(), Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(Strip(" ", left=1, right=0))
    if escaped:
        even = f"(?<!{_ESCAPE})(?:{_ESCAPE}{_ESCAPE})*\\K"
        steps += [Replace(Regex(even + stand_in), character) for character, stand_in in _STAND_INS.items()]
        steps += [Replace(_ESCAPE + private, private) for private in (*_STAND_INS.values(), _ESCAPE)]
    return steps


class Codec(Protocol):
    """Another tokenizer, without special tokens added or read."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


def rounds_ties(tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer` is a unigram model from elsewhere: where the same pieces fit in two orders, SentencePiece's
    fp32 sums decide by their rounding and tokenizers' fp64 sums decide otherwise. Those trained here have scores whose
    sums are exact."""
    if not isinstance(tokenizer.backend, SentencePieceModel):
        return False
    proto = read_model(tokenizer.backend.data)
    return proto.trainer_spec.model_type == 1 and any((256 * piece.score) % 1 for piece in proto.pieces)


def texts_to_compare(tokenizer: Tokenizer) -> tuple[str, ...]:
    """EDGE_CASE_TEXTS. Of a tokenizer.json from elsewhere without those that name a special token of its own: its model
    may find that in a text, from which training keeps it (see protection)."""
    if isinstance(tokenizer.backend, SentencePieceModel):
        return EDGE_CASE_TEXTS
    names = [name for i, name in special_tokens(tokenizer).items() if i < tokenizer.backend.size]
    return tuple(text for text in EDGE_CASE_TEXTS if not any(name in text for name in names))


def disagreements(made: Codec, tokenizer: Tokenizer, texts: tuple[str, ...] = EDGE_CASE_TEXTS) -> list[str]:
    """The texts, as literals, that `made` encodes or decodes differently from `tokenizer`.

    Texts that `tokenizer` refuses (a character model) are left out. What it has no piece for cannot be decoded: where
    a text has such characters only the ids are compared. With `rounds_ties` pieces may come in another order.
    """
    same: Callable[[list[int]], list[int]] = sorted if rounds_ties(tokenizer) else list
    wrong = []
    for text in texts:
        try:
            ids = tokenizer.encode(text)
        except InputError:
            continue
        decodes_alike = tokenizer.unk in ids or made.decode(ids) == tokenizer.decode(ids)
        if same(made.encode(text)) != same(ids) or not decodes_alike:
            wrong.append(json.dumps(text))
    return wrong
