"""The pieces of a tokenizer.json that stand for bytes rather than characters, and which bytes those are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")


def byte_pieces(decoder: object, pieces: Mapping[str, int]) -> dict[int, bytes]:
    """Id -> bytes. decoder: of the tokenizer.json, which says how pieces are spelled. pieces: name -> id."""
    kinds = set(_kinds(decoder))
    if "ByteLevel" in kinds:
        return {i: _spelled(name) for name, i in pieces.items()}
    if "ByteFallback" in kinds:
        found = {i: _FALLBACK.fullmatch(name) for name, i in pieces.items()}
        return {i: bytes([int(match[1], 16)]) for i, match in found.items() if match}
    return {}


def _kinds(decoder: object) -> Iterator[str]:
    """The types of a decoder's steps."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for step in decoder.get("decoders") or ():
            yield from _kinds(step)


def _spelled(piece: str) -> bytes:
    """One byte a character; a piece with other characters, as an added token may have, is text."""
    alphabet = byte_alphabet()
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return piece.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level pieces -> that byte (openai/gpt-2, encoder.py:
    bytes_to_unicode): a printable one for itself, those from U+0100 for the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
