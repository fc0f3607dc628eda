"""Masked image modeling: reconstruct the pixels of masked patches (He et al. 2021, "Masked Autoencoders Are Scalable
Vision Learners", section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import configclass
from data_pipeline.loader import Sample
from data_pipeline.shards.images import EncodedImage
from data_pipeline.stream.packing import Single
from pretraining.objectives.image.augmentation import Pixels, pixels
from pretraining.objectives.image.views import ImageViewsConfig, picture_grid
from pretraining.objectives.samples import Demonstration
from pretraining.patches import PatchGrid

if TYPE_CHECKING:
    from torch import nn

    from pretraining.models.base import MaskedImageAutoencoder
    from pretraining.parallel.layers import Layers

SHOWN = 8
VARIANCE_FLOOR = 1e-6  # facebookresearch/mae, models_mae.py


@configclass
class MaskedImageConfig(ImageViewsConfig):
    """mask_ratio: share of the patches that the encoder doesn't see. norm_pix_loss: the target of a patch is its
    pixels minus their mean, divided by their standard deviation (section 4.1, "Reconstruction target")."""

    name: Literal["masked_image"]
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    norm_pix_loss: bool = True

    def build(self, classes: tuple[str, ...], grid: PatchGrid) -> MaskedImage:
        return MaskedImage(self, grid)

    def huggingface_config(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """What config.json says of the objective."""
        return {"mask_ratio": self.mask_ratio, "norm_pix_loss": self.norm_pix_loss}


class MaskedImage:
    """A sample: image uint8 [3, size, size]; visible int64 [kept], the patches that are not masked, ascending."""

    terms = {"masked_image": 1.0}

    def __init__(self, config: MaskedImageConfig, grid: PatchGrid, training: bool = True) -> None:
        self.config, self.grid, self.training = config, grid, training
        self.kept = int(grid.patches * (1.0 - config.mask_ratio))
        if not self.kept:
            raise InputError(f"objective.mask_ratio={config.mask_ratio} leaves none of {grid.patches} patches visible")

    def for_evaluation(self) -> MaskedImage:
        """Makes samples of the middle of each image."""
        return MaskedImage(self.config, self.grid, training=False)

    def packing(self) -> Single:
        return Single()

    def corrupt(self, pieces: list[EncodedImage], rng: np.random.Generator) -> Sample:
        size = self.grid.image_size
        view = (
            pixels(self.config.training_view(pieces[0], size, rng))
            if self.training
            else self.config.evaluation_view(pieces[0], size)
        )
        return {"image": view, "visible": np.sort(rng.permutation(self.grid.patches)[: self.kept])}

    def collate(self, samples: list[Sample]) -> Sample:
        """-> images uint8 [batch, 3, size, size], visible int64 [batch, kept]."""
        return {"images": np.stack([s["image"] for s in samples]), "visible": np.stack([s["visible"] for s in samples])}

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        """Masked patches."""
        return {"masked_image": len(samples) * (self.grid.patches - self.kept)}

    def tokens(self, sample: Sample) -> int:
        """Images."""
        return 1

    def heads(self, model: MaskedImageAutoencoder, layers: Layers) -> dict[str, nn.Module]:
        """None: the autoencoder's decoder gives the pixels."""
        return {}

    def loss(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """-> {term: sum over the masked patches of the mean squared error of their pixels}, fp32 scalar."""
        images = self.config.normalize(batch["images"])
        errors = (model(images, batch["visible"]).float() - self.targets(images)).square().mean(-1)
        masked = errors.new_ones(errors.shape).scatter(1, batch["visible"], 0.0)
        return {"masked_image": (errors * masked).sum()}

    def targets(self, images: Any) -> Any:
        """images: fp32 [batch, 3, size, size] -> [batch, patches, 3 x patch_size x patch_size]."""
        from pretraining.patches import patchify

        patches = patchify(images, self.grid.patch_size)
        if not self.config.norm_pix_loss:
            return patches
        variance, mean = patches.var(-1, keepdim=True), patches.mean(-1, keepdim=True)
        return (patches - mean) / (variance + VARIANCE_FLOOR).sqrt()

    def flops_per_image(self, model: Any) -> float:
        """Forward and backward."""
        return model.flops_per_image(self.kept)

    def demonstrate(self, model: Any, context: Demonstration) -> str:
        """run_dir/reconstruction.png: validation images, what the encoder sees of them, and what comes back."""
        import torch

        device = next(model.parameters()).device
        batch = {
            name: torch.from_numpy(array).to(device) for name, array in self.collate(context.samples[:SHOWN]).items()
        }
        model.eval()
        with torch.no_grad():
            back = self._reconstruction(self.config.normalize(batch["images"]), model, batch["visible"])
            loss = self.loss(model, batch)["masked_image"] / self.counts(context.samples[:SHOWN])["masked_image"]
        rows = [
            [s["image"] for s in context.samples[:SHOWN]],
            [self._masked(s) for s in context.samples[:SHOWN]],
            [self.config.visible(image) for image in back],
        ]
        path = context.run_dir / "reconstruction.png"
        picture_grid(rows).save(path)
        return f"masked patches are reconstructed with a squared error of {float(loss):.4f}\npicture: {path}"

    def describe(self, sample: Sample, tokenizer: None = None) -> str:
        return f"{self.kept} of {self.grid.patches} patches are visible: {sample['visible'].tolist()}"

    def picture(self, sample: Sample) -> Image.Image:
        """The image, and what the encoder sees of it."""
        return picture_grid([[sample["image"], self._masked(sample)]])

    def _masked(self, sample: Sample) -> Pixels:
        """The masked patches in gray."""
        side = self.grid.image_size // self.grid.patch_size
        seen = np.zeros(self.grid.patches, bool)
        seen[sample["visible"]] = True
        mask = seen.reshape(side, side).repeat(self.grid.patch_size, 0).repeat(self.grid.patch_size, 1)
        return np.where(mask, sample["image"], np.uint8(128))

    def _reconstruction(self, images: Any, model: Any, visible: Any) -> Any:
        """Visible patches as they are, the others as the model gives them, their own mean and deviation put back."""
        from pretraining.patches import patchify, unpatchify

        patches = patchify(images, self.grid.patch_size)
        guess = model(images, visible).float()
        if self.config.norm_pix_loss:
            variance, mean = patches.var(-1, keepdim=True), patches.mean(-1, keepdim=True)
            guess = guess * (variance + VARIANCE_FLOOR).sqrt() + mean
        seen = guess.new_zeros(guess.shape[:2]).scatter(1, visible, 1.0).bool()[..., None]
        return unpatchify(patches.where(seen, guess), self.grid.patch_size)
