"""Text in other encodings than UTF-8, read as the UTF-8 of the same characters."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import IO

from data_pipeline.common.errors import InputError

AUTO = "auto"
_READ_BYTES = 1 << 16
_GUESSED_BYTES = 1 << 14  # before and after the first byte that is not UTF-8
REPLACEMENT = "\ufffd"


def check_encoding(name: str) -> None:
    """Raises InputError where `name` is neither auto nor an encoding of text."""
    try:
        if name != AUTO:
            "x".encode(name)  # refuses rot13 and the like
            codecs.getincrementaldecoder(name)
    except (LookupError, ValueError) as error:
        raise InputError(
            f"corpus.encoding={name} is not an encoding that Python knows; examples are latin-1, cp1252, utf-16, "
            f"shift_jis; {AUTO} finds it for each file"
        ) from error


def find_encoding(file: IO[bytes], name: str) -> str:
    """utf-8 where all of the file is; else what charset-normalizer makes of the part around the first byte that is
    not. Raises InputError where that is no text."""
    from charset_normalizer import from_bytes

    decoder = codecs.getincrementaldecoder("utf-8")()
    before = b""
    while data := file.read(_READ_BYTES):
        try:
            decoder.decode(data)
        except UnicodeDecodeError as error:
            at = len(before) + max(error.start, 0)
            part = (before + data + file.read(_GUESSED_BYTES))[max(0, at - _GUESSED_BYTES) : at + _GUESSED_BYTES]
            best = from_bytes(part).best()
            if best is None:
                raise InputError(
                    f"{name}: not text in any encoding that can be found; corpus.exclude leaves files out"
                ) from error
            return best.encoding
        before = data
    return "utf-8"


def recoded(file: IO[bytes], encoding: str, replaced: Callable[[int], None]) -> IO[bytes]:
    """The UTF-8 of a file's characters. replaced: told how many could not be read and became U+FFFD."""
    return io.BufferedReader(_Recoded(file, encoding, replaced), _READ_BYTES)


class _Recoded(io.RawIOBase):
    def __init__(self, file: IO[bytes], encoding: str, replaced: Callable[[int], None]) -> None:
        self._file, self._replaced = file, replaced
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            data = self._file.read(_READ_BYTES)
            self._ended = not data
            text = self._decoder.decode(data, final=self._ended)
            self._replaced(text.count(REPLACEMENT))
            self._ready = memoryview(text.encode("utf-8", "replace"))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
