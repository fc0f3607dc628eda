"""What the image objectives share: views of an image, its normalization, and pictures for people."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import AfterValidator, Field

from data_pipeline.common.fields import PositiveFloat, Probability, configclass
from data_pipeline.common.files import write_atomically
from data_pipeline.shards.image_codec import EncodedImage, decode_rgb
from pretraining.objectives.image.augmentation import Pixels, center_crop, pixels, random_flip, random_resized_crop

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_IMAGES = 8  # in the picture of a demonstration
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _ascending(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the smaller bound comes first")
    return bounds


PartOfImage = Annotated[float, Field(gt=0.0, le=1.0)]
RangeOfParts = Annotated[list[PartOfImage], Field(min_length=2, max_length=2), AfterValidator(_ascending)]
RangeOfRatios = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2), AfterValidator(_ascending)]
ChannelMeans = Annotated[list[float], Field(min_length=3, max_length=3)]
ChannelDeviations = Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)]


@configclass
class ImageViewsConfig:
    """How images are cropped, mirrored and normalized.

    crop_scale: range of the part of the area that a training crop covers.
    crop_ratio: range of a training crop's width / height.
    flip_probability: of mirroring left and right.
    eval_crop: part of the shorter side that an evaluation sees.
    mean: of each color, on a scale of 0 to 1; the model is given (pixel - mean) / std.
    std: of each color, as for mean.
    """

    name: str
    crop_scale: RangeOfParts = Field(default_factory=lambda: [0.08, 1.0])
    crop_ratio: RangeOfRatios = Field(default_factory=lambda: [3 / 4, 4 / 3])
    flip_probability: Probability = 0.5
    eval_crop: PartOfImage = 0.875
    mean: ChannelMeans = Field(default_factory=lambda: list(IMAGENET_MEAN))
    std: ChannelDeviations = Field(default_factory=lambda: list(IMAGENET_STD))

    def training_view(self, image: EncodedImage, size: int, rng: np.random.Generator) -> Image.Image:
        """Raises InputError where the image is broken."""
        crop = random_resized_crop(decode_rgb(image), size, self.crop_scale, self.crop_ratio, rng)
        return random_flip(crop, self.flip_probability, rng)

    def evaluation_view(self, image: EncodedImage, size: int) -> Pixels:
        """-> uint8 [3, size, size]. Raises InputError where the image is broken."""
        return pixels(center_crop(decode_rgb(image), size, self.eval_crop))

    def huggingface_config(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """What config.json says about the objective."""
        return {}

    def huggingface_processor(self, size: int) -> dict[str, Any]:
        """preprocessor_config.json for what an evaluation sees. It is Perceiver's, which cuts out the middle before it
        scales, and whose `size` is the model's, as fine-tuning scripts take it; ViT's own squeezes the whole image into
        a square."""
        shorter = size / self.eval_crop
        return {
            "image_processor_type": "PerceiverImageProcessor",
            "do_convert_rgb": True,
            "do_center_crop": True,
            "crop_size": {"height": shorter, "width": shorter},  # size / crop_size of the shorter side is cut out
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": int(Image.Resampling.BICUBIC),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
        }

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [batch, 3, height, width] -> fp32."""
        import torch

        # With scalars, channel by channel: a tensor of means would have to be copied to the device at each step
        channels = [
            images[:, c].float().div_(255 * std).sub_(mean / std)
            for c, (mean, std) in enumerate(zip(self.mean, self.std, strict=True))
        ]
        return torch.stack(channels, dim=1)

    def denormalize(self, image: Tensor) -> Pixels:
        """The inverse of `normalize` for one image, [3, height, width], cut off at black and white."""
        array = image.float().cpu().numpy()
        scaled = array * np.array(self.std)[:, None, None] + np.array(self.mean)[:, None, None]
        return np.rint(scaled.clip(0.0, 1.0) * 255).astype(np.uint8)


def picture_grid(rows: Sequence[Sequence[Pixels]], captions: Sequence[str] = (), min_side: int = 96) -> Image.Image:
    """Pictures in rows of equal length, of at least `min_side` pixels each. Captions stand below the pictures of the
    last row, one each and no wider than these."""
    side = rows[0][0].shape[1]
    scale = max(1, -(-min_side // side))
    cell, line = side * scale + 4, 12
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    sheet = Image.new("RGB", (cell * len(rows[0]), cell * len(rows) + lines * line), "white")
    for r, row in enumerate(rows):
        for c, array in enumerate(row):
            image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
            sheet.paste(image.resize((side * scale, side * scale), Image.Resampling.NEAREST), (c * cell, r * cell))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(line - 2)
    for c, caption in enumerate(captions):
        text = "\n".join(_fitted(line, cell - 4, font) for line in caption.split("\n"))
        draw.multiline_text((c * cell, cell * len(rows) - 2), text, fill="black", font=font, spacing=1)
    return sheet


def write_picture(picture: Image.Image, path: Path) -> None:
    """As PNG; a link that lies there is replaced, not followed."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomically(path, data.getvalue())


def _fitted(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The line in ASCII, all that Pillow's own font has, its middle left out where it is wider than `width`."""
    plain = shown = line.encode("ascii", "backslashreplace").decode()
    kept = len(plain)
    while kept and font.getlength(shown) > width:
        kept -= 1
        shown = plain[: kept - kept // 2] + "\u2026" + plain[len(plain) - kept // 2 :]
    return shown
