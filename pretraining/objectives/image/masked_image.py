"""Masked image modeling: reconstruct the pixels of masked patches (He et al. 2021, "Masked Autoencoders Are Scalable
Vision Learners", section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import configclass
from data_pipeline.loader import Sample
from data_pipeline.shards.images import EncodedImage
from data_pipeline.stream.packing import Single
from pretraining.models.base import MaskedImageAutoencoder
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.image.augmentation import Pixels, pixels
from pretraining.objectives.image.views import SHOWN_IMAGES, ImageViewsConfig, picture_grid, write_picture
from pretraining.objectives.samples import on_device_of
from pretraining.patches import patchify, unpatchify

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.parallel.layers import Layers

VARIANCE_FLOOR = 1e-6  # facebookresearch/mae, models_mae.py


@configclass
class MaskedImageConfig(ImageViewsConfig):
    """Reconstruct the pixels of masked patches.

    mask_ratio: part of the patches that the encoder does not see.
    norm_pix_loss: the target of a patch is its pixels minus their mean, divided by their standard deviation (section
        4.1, "Reconstruction target").
    """

    name: Literal["masked_image"]
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    norm_pix_loss: bool = True

    def huggingface_config(self, classes: tuple[str, ...]) -> dict[str, Any]:
        return {"mask_ratio": self.mask_ratio, "norm_pix_loss": self.norm_pix_loss}


class MaskedImage(Objective[EncodedImage, MaskedImageAutoencoder]):
    """A sample: image uint8 [3, image_size, image_size]; visible int64 [kept], the patches that are not masked,
    ascending."""

    terms = {"masked_image": 1.0}
    unit = Unit.IMAGES

    def __init__(self, config: MaskedImageConfig, spec: SampleSpec, training: bool = True) -> None:
        """Raises InputError where no patch is left to be seen."""
        assert spec.grid is not None
        self.config, self.spec, self.grid, self.training = config, spec, spec.grid, training
        self.kept = int(self.grid.patches * (1.0 - config.mask_ratio))
        if not self.kept:
            raise InputError(
                f"objective.mask_ratio={config.mask_ratio} leaves none of {self.grid.patches} patches visible"
            )

    def for_evaluation(self) -> Self:
        """Its samples are the middle of each image."""
        return type(self)(self.config, self.spec, training=False)

    def packing(self) -> Single:
        return Single()

    def corrupt(self, segments: Sequence[EncodedImage], rng: np.random.Generator) -> Sample:
        size = self.grid.image_size
        view = (
            pixels(self.config.training_view(segments[0], size, rng))
            if self.training
            else self.config.evaluation_view(segments[0], size)
        )
        return {"image": view, "visible": np.sort(rng.permutation(self.grid.patches)[: self.kept])}

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> images uint8 [batch, 3, image_size, image_size], visible int64 [batch, kept]."""
        return {"images": np.stack([s["image"] for s in samples]), "visible": np.stack([s["visible"] for s in samples])}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Masked patches."""
        return {"masked_image": len(samples) * (self.grid.patches - self.kept)}

    def size(self, sample: Sample) -> int:
        return 1

    def heads(self, model: MaskedImageAutoencoder, layers: Layers) -> dict[str, nn.Module]:
        """None: the autoencoder's decoder gives the pixels."""
        return {}

    def loss(self, model: MaskedImageAutoencoder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """-> {"masked_image": sum over the masked patches of the mean squared error of their pixels}."""
        images = self.config.normalize(batch["images"])
        errors = (model(images, batch["visible"]).float() - self.targets(images)).square().mean(-1)
        masked = errors.new_ones(errors.shape).scatter(1, batch["visible"], 0.0)
        return {"masked_image": (errors * masked).sum()}

    def targets(self, images: Tensor) -> Tensor:
        """images: fp32 [batch, 3, image_size, image_size] -> [batch, patches, 3 x patch_size x patch_size]."""
        patches = patchify(images, self.grid.patch_size)
        if not self.config.norm_pix_loss:
            return patches
        variance, mean = patches.var(-1, keepdim=True), patches.mean(-1, keepdim=True)
        return (patches - mean) / (variance + VARIANCE_FLOOR).sqrt()

    def flops_per_unit(self, model: MaskedImageAutoencoder) -> float:
        return model.flops_per_image(self.kept)

    def describe(self, sample: Sample) -> str:
        return f"{self.kept} of {self.grid.patches} patches are visible: {sample['visible'].tolist()}"

    def picture(self, sample: Sample) -> Image.Image:
        """The image, and what the encoder sees of it."""
        return picture_grid([[sample["image"], self._masked(sample)]])

    def demonstrate(self, model: MaskedImageAutoencoder, demonstration: Demonstration) -> str:
        """run_dir/reconstruction.png: validation images, what the encoder sees of them, and their reconstruction."""
        import torch

        samples = demonstration.samples[:SHOWN_IMAGES]
        batch = on_device_of(model, self.collate(samples))
        model.eval()
        with torch.no_grad():
            reconstructed = self._reconstruction(self.config.normalize(batch["images"]), model, batch["visible"])
            loss = self.loss(model, batch)["masked_image"] / self.counts(samples)["masked_image"]
        rows = [
            [s["image"] for s in samples],
            [self._masked(s) for s in samples],
            [self.config.denormalize(image) for image in reconstructed],
        ]
        path = demonstration.run_dir / "reconstruction.png"
        write_picture(picture_grid(rows), path)
        return f"masked patches are reconstructed with a squared error of {float(loss):.4f}\npicture: {path}"

    def _masked(self, sample: Sample) -> Pixels:
        """The image with its masked patches in gray."""
        side = self.grid.side
        seen = np.zeros(self.grid.patches, bool)
        seen[sample["visible"]] = True
        mask = seen.reshape(side, side).repeat(self.grid.patch_size, 0).repeat(self.grid.patch_size, 1)
        return np.where(mask, sample["image"], np.uint8(128))

    def _reconstruction(self, images: Tensor, model: MaskedImageAutoencoder, visible: Tensor) -> Tensor:
        """Visible patches as they are, the others as the model predicts them. Under norm_pix_loss a prediction has no
        mean and deviation: those of the true patch are put back."""
        patches = patchify(images, self.grid.patch_size)
        guess = model(images, visible).float()
        if self.config.norm_pix_loss:
            variance, mean = patches.var(-1, keepdim=True), patches.mean(-1, keepdim=True)
            guess = guess * (variance + VARIANCE_FLOOR).sqrt() + mean
        seen = guess.new_zeros(guess.shape[:2]).scatter(1, visible, 1.0).bool()[..., None]
        return unpatchify(patches.where(seen, guess), self.grid.patch_size)
