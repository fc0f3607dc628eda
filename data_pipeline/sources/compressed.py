"""Compressed text files as streams of bytes, in bounded memory and linear time."""

from __future__ import annotations

import gzip
import io
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import zstandard

_INPUT_BYTES = 1 << 9  # a block of 4 bytes may hold 128 KiB: one call gives 16 MiB at most
_MAX_WINDOW = 1 << 31  # zstd --long=31, as Pushshift's files are compressed; by default 2^27 is the limit


def open_compressed(path: str) -> IO[bytes]:
    """The content of a file, decompressed by its suffix. Reading raises EOFError where it is damaged or truncated."""
    lower = path.lower()
    if lower.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if lower.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), 1 << 17)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """Decompresses frame after frame. zstandard's own reader takes a truncated file for a complete one."""

    def __init__(self, path: str) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115 - until close()
        self._zstandard = zstandard
        self._frame = self._new_frame()
        self._started = False
        self._ready = memoryview(b"")  # what was decompressed and not yet read; a slice of it copies nothing
        self._rest = memoryview(b"")  # what follows the end of a frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            data = bytes(self._rest[:_INPUT_BYTES]) or self._file.read(_INPUT_BYTES)
            if not data:
                if self._started and not self._frame.eof:
                    raise EOFError("the last frame is incomplete")
                return 0
            self._rest = self._rest[len(data) :]
            self._decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _new_frame(self) -> zstandard.ZstdDecompressionObj:
        return self._zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()

    def _decompress(self, data: bytes) -> None:
        if self._frame.eof:
            self._frame = self._new_frame()
        self._started = True
        try:
            self._ready = memoryview(self._frame.decompress(data))
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        if self._frame.eof and self._frame.unused_data:
            self._rest = memoryview(self._frame.unused_data + bytes(self._rest))
