"""ViT's reference: random crops of shuffled photos (Szegedy et al. 2015, section 6; torchvision's way)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, ViTForImageClassification

from benchmarks.convergence.prepared import read_images

Batch = dict[str, Tensor]
EVALUATED = 64  # images
AREA, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
MIDDLE = 0.875  # of the shorter side is evaluated
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Labeled = tuple[Image.Image, int]


class Reference:
    def __init__(self, data: Path, start: Path) -> None:
        self.size = AutoConfig.from_pretrained(start).image_size
        self.data = data

    def load(self, folder: Path) -> ViTForImageClassification:
        return ViTForImageClassification.from_pretrained(folder, dtype=torch.float32)

    def training_batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        images = read_images(self.data, "train")
        while True:
            order = rng.permutation(len(images))
            for first in range(0, len(order) - size + 1, size):
                chosen = [images[i] for i in order[first : first + size]]
                yield self._batch([(self._random_crop(image, rng), label) for image, label in chosen])

    def validation_batches(self) -> Iterator[Batch]:
        images = read_images(self.data, "valid")
        for first in range(0, len(images), EVALUATED):
            yield self._batch([(self._middle(image), label) for image, label in images[first : first + EVALUATED]])

    def loss(self, model: ViTForImageClassification, batch: Batch) -> tuple[Tensor, int]:
        logits = model(batch["pixels"]).logits
        return F.cross_entropy(logits, batch["labels"], reduction="sum"), len(batch["labels"])

    def _random_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        crop = self._resized(image, random_box(image.width, image.height, rng))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _middle(self, image: Image.Image) -> Image.Image:
        side = MIDDLE * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return self._resized(image, (left, top, left + side, top + side))

    def _resized(self, image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)

    def _batch(self, images: list[Labeled]) -> Batch:
        pixels = np.stack([(np.asarray(image) / 255 - MEAN) / STD for image, _ in images])
        return {
            "pixels": torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(),
            "labels": torch.tensor([label for _, label in images]),
        }


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """left, top, right, bottom of a part of random area and shape; the middle where none of ten fits."""
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
