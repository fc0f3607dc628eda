"""Image classification: a label for each image (Dosovitskiy et al. 2020), with label smoothing (Szegedy et al. 2015,
section 7), mixup (Zhang et al. 2017), CutMix (Yun et al. 2019) and RandAugment (Cubuk et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data_pipeline.common.fields import Fraction, NonNegative, NonNegativeFloat, configclass
from data_pipeline.loader import Sample
from data_pipeline.shards.images import EncodedImage
from data_pipeline.stream.packing import Single
from pretraining.objectives.image.augmentation import Pixels, cutmix, mixup, pixels, rand_augment
from pretraining.objectives.image.views import ImageViewsConfig, picture_grid
from pretraining.objectives.samples import Demonstration
from pretraining.patches import PatchGrid

if TYPE_CHECKING:
    from torch import nn

    from pretraining.models.base import ImageEncoder
    from pretraining.parallel.layers import Layers

SHOWN = 8


@configclass
class ImageClassificationConfig(ImageViewsConfig):
    """mixup, cutmix: alpha of the Beta(alpha, alpha) that mixing weights are drawn from (0: off); where both are on,
    either is taken with probability 1/2. rand_augment_ops: operations per image (0: off); rand_augment_magnitude: 0
    to 10. Label smoothing and mixing are for training alone."""

    name: Literal["image_classification"]
    label_smoothing: Fraction = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    rand_augment_ops: NonNegative = 0
    rand_augment_magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 10.0

    def build(self, classes: tuple[str, ...], grid: PatchGrid) -> ImageClassification:
        return ImageClassification(self, classes, grid.image_size)

    def huggingface_config(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """What config.json says of the objective."""
        return {
            "id2label": {str(i): name for i, name in enumerate(classes)},
            "label2id": {name: i for i, name in enumerate(classes)},
        }


class ImageClassification:
    """A sample: image uint8 [3, size, size]; labels int64 [2], its own and its partner's; weight fp32, its own share.

    `accuracy` is a term of weight 0: it is told, never trained.
    """

    terms = {"image_classification": 1.0, "accuracy": 0.0}

    def __init__(
        self, config: ImageClassificationConfig, classes: tuple[str, ...], image_size: int, training: bool = True
    ) -> None:
        self.config, self.classes, self.size, self.training = config, classes, image_size, training
        self.mixes = training and (config.mixup > 0 or config.cutmix > 0)

    def for_evaluation(self) -> ImageClassification:
        """Makes samples of the middle of each image, unmixed."""
        return ImageClassification(self.config, self.classes, self.size, training=False)

    def packing(self) -> Single:
        return Single(partner=self.mixes)

    def corrupt(self, pieces: list[EncodedImage], rng: np.random.Generator) -> Sample:
        image, weight = self._view(pieces[0], rng), 1.0
        if self.mixes:
            image, weight = self._mix(image, self._view(pieces[1], rng), rng)
        return {
            "image": image,
            "labels": np.array([pieces[0].label, pieces[-1].label]),
            "weight": np.array(weight, np.float32),
        }

    def collate(self, samples: list[Sample]) -> Sample:
        """-> images uint8 [batch, 3, size, size], labels int64 [batch, 2], weights fp32 [batch]."""
        return {
            "images": np.stack([s["image"] for s in samples]),
            "labels": np.stack([s["labels"] for s in samples]),
            "weights": np.stack([s["weight"] for s in samples]),
        }

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        return dict.fromkeys(self.terms, len(samples))

    def tokens(self, sample: Sample) -> int:
        """Images."""
        return 1

    def heads(self, model: ImageEncoder, layers: Layers) -> dict[str, nn.Module]:
        from pretraining.models.heads import class_head

        return {"head": class_head(model)}

    def loss(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """-> {term: sum over the batch}, fp32 scalars."""
        import torch.nn.functional as F

        logits = model.head(model(self.config.normalize(batch["images"]))).float()
        smoothing = self.config.label_smoothing if model.training else 0.0
        own, other = (
            F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            for labels in batch["labels"].unbind(1)
        )
        losses = batch["weights"] * own + (1.0 - batch["weights"]) * other
        hits = (logits.argmax(-1) == batch["labels"][:, 0]).float()
        return {"image_classification": losses.sum(), "accuracy": hits.sum()}

    def flops_per_image(self, model: Any) -> float:
        """Forward and backward."""
        return model.flops_per_image()

    def demonstrate(self, model: Any, context: Demonstration) -> str:
        """The labels that the model gives to validation images, as text and as run_dir/predictions.png."""
        import torch

        samples = context.samples[:SHOWN]
        model.eval()
        with torch.no_grad():
            images = torch.from_numpy(self.collate(samples)["images"]).to(next(model.parameters()).device)
            logits = model.head(model(self.config.normalize(images)))
            shares, numbers = logits.float().softmax(-1).max(-1)
        truth = [self.classes[s["labels"][0]] for s in samples]
        guesses = [f"{self.classes[n]} ({p:.0%})" for n, p in zip(numbers.tolist(), shares.tolist(), strict=True)]
        captions = [f"{guess}\nis {label}" for guess, label in zip(guesses, truth, strict=True)]
        path = context.run_dir / "predictions.png"
        picture_grid([[s["image"] for s in samples]], captions).save(path)
        lines = [f"predicted {guess}, is {label}" for guess, label in zip(guesses, truth, strict=True)]
        return "\n".join([*lines, f"picture: {path}"])

    def describe(self, sample: Sample, tokenizer: None = None) -> str:
        first, second = (self.classes[number] for number in sample["labels"])
        weight = float(sample["weight"])
        return first if weight == 1.0 else f"{weight:.2f} {first} + {1 - weight:.2f} {second}"

    def picture(self, sample: Sample) -> Image.Image:
        """What the model is fed."""
        return picture_grid([[sample["image"]]], [self.describe(sample)])

    def _view(self, image: EncodedImage, rng: np.random.Generator) -> Pixels:
        if not self.training:
            return self.config.evaluation_view(image, self.size)
        view = self.config.training_view(image, self.size, rng)
        return pixels(rand_augment(view, self.config.rand_augment_ops, self.config.rand_augment_magnitude, rng))

    def _mix(self, image: Pixels, partner: Pixels, rng: np.random.Generator) -> tuple[Pixels, float]:
        """-> (pixels, the first one's share)."""
        use_mixup = rng.random() < 0.5 if self.config.mixup and self.config.cutmix else self.config.mixup > 0
        alpha = self.config.mixup if use_mixup else self.config.cutmix
        weight = float(rng.beta(alpha, alpha))
        return (mixup(image, partner, weight), weight) if use_mixup else cutmix(image, partner, weight, rng)
