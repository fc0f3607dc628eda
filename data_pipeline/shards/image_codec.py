"""Image files as they stand in shards: what is accepted, and how bytes become pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data_pipeline.common.errors import InputError

MAX_PIXELS = 2**26
MAX_IMAGE_BYTES = 2**26
_SUFFIX = {"JPEG": "jpg", "PNG": "png"}
_SIXTEEN_BITS = ("I;16", "I")  # a gray PNG's mode in Pillow; "I" in older ones
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation


class BrokenImage(Exception):
    """Why bytes are not an image that is accepted."""


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of a JPEG or PNG file, the number of its class, and where it lies (shard and member)."""

    data: bytes
    label: int
    name: str


def decode(data: bytes) -> Image.Image:
    """The image, fully read, in the mode of its file. Raises BrokenImage."""
    if len(data) > MAX_IMAGE_BYTES:
        raise BrokenImage(f"{len(data)} bytes, more than {MAX_IMAGE_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is below the size that Pillow warns of
            image = Image.open(io.BytesIO(data), formats=tuple(_SUFFIX))
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            image.load()
    except UnidentifiedImageError as error:  # its own text holds an address in memory
        raise BrokenImage("neither a JPEG nor a PNG, by its content" if data else "an empty file") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:  # Pillow's readers raise any of these on damaged files
        raise BrokenImage(str(error) or type(error).__name__) from error
    return image


def decode_rgb(image: EncodedImage) -> Image.Image:
    """Three channels of 8 bits, upright. Raises InputError that names shard and image."""
    try:
        return _rgb(_upright(decode(image.data)))
    except BrokenImage as error:
        raise InputError(f"{image.name}: a broken image ({error}); prepare the data again") from error


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. Viewers ignore EXIF that cannot be read, and so does Pillow when it opens a file.
    ImageOps.exif_transpose would write the rest of it anew, and fail where that is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except (SyntaxError, ValueError, TypeError, struct.error):
            return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion cuts 16 bits off at 255 and so makes nearly everything white."""
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def suffix_of(image: Image.Image) -> str:
    """jpg or png, by the content: there are files named otherwise."""
    return _SUFFIX[str(image.format)]
