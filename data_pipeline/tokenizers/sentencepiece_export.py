"""A tokenizer trained here as a SentencePiece file for other programs (llama.cpp), which know nothing of escaping."""

from __future__ import annotations

from data_pipeline.tokenizers.export import Ids, exported_ids, special_tokens
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceModel, escape, read_model, unescape
from data_pipeline.tokenizers.tokenizer import Tokenizer

_SPACE_STAND_IN = escape("\u2581")


def sentencepiece_file(tokenizer: Tokenizer, used: Ids | None = None) -> bytes | None:
    """The bytes of a tokenizer.model with the exported ids; None where the tokenizer is no SentencePiece model.

    Its pieces spell newlines, tabs and the like themselves: ours hold stand-ins for them (sentencepiece_model). U+2581
    in a text is a space to other programs, as in any SentencePiece model. Ids after the pieces are control pieces.
    """
    backend = tokenizer.backend
    if not isinstance(backend, SentencePieceModel):
        return None
    proto = read_model(backend.data)
    if backend.escaped:
        taken = {piece.piece for piece in proto.pieces}
        for piece in proto.pieces:
            plain = unescape(piece.piece)
            if piece.type == piece.NORMAL and plain not in taken and _SPACE_STAND_IN not in piece.piece:
                piece.piece = plain
    numbers, first = exported_ids(tokenizer, used), len(proto.pieces)
    for i, name in special_tokens(tokenizer).items():
        if numbers.get(i, -1) >= first:
            assert numbers[i] == len(proto.pieces)
            added = proto.pieces.add()
            added.piece, added.score, added.type = name, 0.0, added.CONTROL
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return bytes(proto.SerializeToString(deterministic=True))
