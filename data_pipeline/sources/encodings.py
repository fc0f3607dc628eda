"""Text in other encodings than UTF-8, read as the UTF-8 of the same characters."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import IO

from data_pipeline.common.errors import InputError

AUTO = "auto"
# Those in use for text, the likelier first: charset-normalizer takes a few Western letters for cp1250 or EBCDIC
_COMMON = (
    *(
        "utf_16",
        "utf_32",
        "cp1252",
        "cp1251",
        "koi8_r",
        "koi8_u",
        "cp1250",
        "iso8859_2",
        "cp932",
        "euc_jp",
        "iso2022_jp",
    ),
    *("gb18030", "big5", "cp949", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "cp866"),
    *("iso8859_15", "mac_roman", "cp437", "cp850"),
)
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
    not, the most common one where several fit as well. Raises InputError where that is no text."""
    from charset_normalizer import from_bytes

    decoder = codecs.getincrementaldecoder("utf-8")()
    before = b""
    ended = False
    while not ended:
        data = file.read(_READ_BYTES)
        ended = not data
        try:
            decoder.decode(data, final=ended)  # at the end, a character that was begun is none
        except UnicodeDecodeError as error:
            at = len(before) + max(error.start, 0)
            part = (before + data + file.read(_GUESSED_BYTES))[max(0, at - _GUESSED_BYTES) : at + _GUESSED_BYTES]
            matches = from_bytes(part, cp_isolation=list(_COMMON))
            best = matches.best()
            if best is None:
                raise InputError(
                    f"{name}: not text in any encoding that can be found; corpus.exclude leaves files out"
                ) from error
            equal = [m for m in matches if (m.chaos, m.coherence) == (best.chaos, best.coherence)]
            possible = {name for match in equal for name in match.could_be_from_charset}
            return next((name for name in _COMMON if name in possible), best.encoding)
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
