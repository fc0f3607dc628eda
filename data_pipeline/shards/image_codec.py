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
_FORMATS = ("JPEG", "PNG")
# MPO: a JPEG that is followed by others, as phones and drones write; Pillow opens it at its first picture
_SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
_GROUND = "white"  # what shows through transparent pixels; their own color is arbitrary, black mostly
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
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            image.load()
    except UnidentifiedImageError as error:  # its own message contains a memory address
        raise BrokenImage("its content is neither JPEG nor PNG" if data else "an empty file") from error
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
    ) as error:  # what Pillow's readers raise on damaged files
        raise BrokenImage(str(error) or type(error).__name__) from error
    return image


def decode_rgb(image: EncodedImage) -> Image.Image:
    """Three channels of 8 bits, upright, transparent parts on white. Raises InputError that names shard and image."""
    try:
        return _rgb(_upright(decode(image.data)))
    except BrokenImage as error:
        raise InputError(f"{image.name} is a broken image ({error}); prepare the data again") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. Unreadable EXIF is ignored, as viewers and Pillow's own open() do."""
    # Not ImageOps.exif_transpose: it also rewrites the rest of the EXIF data, and fails where that is malformed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except (SyntaxError, ValueError, TypeError, struct.error):
            return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent is laid on white."""
    # Pillow's own conversion clips 16-bit values at 255, which makes nearly everything white.
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image)
        if "transparency" in image.info:
            values = np.where(values == image.info["transparency"], 65535, values)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _GROUND), layer).convert("RGB")
    return image.convert("RGB")


def suffix_of(image: Image.Image) -> str:
    """jpg or png, by the content: some files have the wrong name."""
    return _SUFFIX[str(image.format)]
