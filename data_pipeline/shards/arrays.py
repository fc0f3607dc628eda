"""Arrays of one dimension as numpy writes them (.npy, and .npz without compression), told by their form alone.

numpy's own readers are made for files that one trusts: they evaluate a header as Python, allocate what it asks for,
decompress what there is, and raise a dozen kinds of exceptions.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '[<|]([iuU]\d{1,4})', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n",
    re.DOTALL,
)


class Malformed(ValueError):
    """Why bytes are not the arrays that they should be."""


def write_array(array: npt.NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    data = io.BytesIO()
    np.lib.format.write_array(data, array, allow_pickle=False)
    return data.getvalue()


def read_array(data: bytes, kind: str) -> npt.NDArray[Any]:
    """The array [any length] of a .npy file, a copy. kind: as in "u2" or "i8"; "U" for text of any length. Raises
    Malformed."""
    header = _HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(data[8:10], "little"):
        raise Malformed("it is not an array of one dimension as numpy writes it")
    found, length = header[1].decode(), int(header[2])
    if found != kind and not (kind == "U" == found[0] and found != "U0"):
        raise Malformed(f"its type is {found}, not {kind}")
    dtype = np.dtype(f"<{found}")
    if len(data) - header.end() != length * dtype.itemsize:
        raise Malformed(f"{len(data) - header.end()} bytes are not {length} values of type {found}")
    return np.frombuffer(data, dtype, length, header.end()).copy()


def write_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of a .npz file."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    return data.getvalue()


def read_arrays(data: bytes, kinds: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """name -> array of a .npz file that holds these names and no others. kinds: name -> as in `read_array`. Raises
    Malformed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sorted(members) != sorted(f"{name}.npy" for name in kinds) or len(archive.infolist()) != len(kinds):
                raise Malformed(f"it does not hold the arrays {', '.join(kinds)}")
            for info in members.values():
                # Stored as they are: nothing that is decompressed can be larger than the file itself.
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                    raise Malformed(f"{info.filename} is compressed")
            return {name: read_array(archive.read(f"{name}.npy"), kind) for name, kind in kinds.items()}
    except Malformed:
        raise
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,  # NotImplementedError and the password of an encrypted member too
        OverflowError,
        LookupError,
        struct.error,
    ) as error:  # what zipfile raises on damaged files
        raise Malformed(f"it is not an archive of arrays ({error or type(error).__name__})") from error
