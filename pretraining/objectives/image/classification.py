"""Image classification: predict the label of each image (Dosovitskiy et al. 2020), with label smoothing (Szegedy et
al. 2015, section 7), mixup (Zhang et al. 2017), CutMix (Yun et al. 2019) and RandAugment (Cubuk et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Fraction, NonNegative, NonNegativeFloat, configclass, unused_with
from data_pipeline.loader import Sample
from data_pipeline.shards.images import EncodedImage
from data_pipeline.stream.packing import Single
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.image import augmentation, big_vision_augment
from pretraining.objectives.image.augmentation import Pixels, cutmix, mixup, pixels
from pretraining.objectives.image.views import SHOWN_IMAGES, ImageViewsConfig, picture_grid, write_picture
from pretraining.objectives.models import ImageEncoderWithHead
from pretraining.objectives.samples import on_device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import ImageEncoder
    from pretraining.parallel.layers import Layers


RandAugmentKind = Literal["torchvision", "big_vision"]
RAND_AUGMENT = {"torchvision": augmentation.rand_augment, "big_vision": big_vision_augment.rand_augment}


@configclass
class ImageClassificationConfig(ImageViewsConfig):
    """Predict the label of each image. Smoothing, mixing and augmentation apply to training alone.

    label_smoothing: part of the target that is spread evenly over all classes.
    mixup: alpha of the Beta(alpha, alpha) from which mixing weights are drawn (0: off).
    cutmix: as mixup; if both are on, each image gets either one with probability 1/2.
    rand_augment_ops: operations per image (0: off).
    rand_augment_kind: whose operations and strengths: those of torchvision.transforms.RandAugment, or of big_vision.
    rand_augment_magnitude: how strong they are, 0 to 10.
    """

    name: Literal["image_classification"]
    label_smoothing: Fraction = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    rand_augment_ops: NonNegative = 0
    rand_augment_kind: Annotated[Literal["torchvision", "big_vision"], unused_with("rand_augment_ops", 0)] = (
        "torchvision"
    )
    rand_augment_magnitude: Annotated[float, Field(ge=0.0, le=10.0), unused_with("rand_augment_ops", 0)] = 10.0

    def huggingface_config(self, classes: tuple[str, ...]) -> dict[str, Any]:
        return {
            "id2label": {str(i): name for i, name in enumerate(classes)},
            "label2id": {name: i for i, name in enumerate(classes)},
        }


class ImageClassification(Objective[EncodedImage, ImageEncoderWithHead]):
    """A sample: image uint8 [3, image_size, image_size]; labels int64 [2], its own and its partner's; weight fp32 [],
    that of its own label."""

    terms = {"image_classification": 1.0}
    metrics = ("accuracy",)  # of the image's own label, also where another is mixed in
    unit = Unit.IMAGES

    def __init__(self, config: ImageClassificationConfig, spec: SampleSpec, training: bool = True) -> None:
        """Raises InputError where there is nothing to tell apart."""
        assert spec.grid is not None
        if len(spec.classes) < 2:
            raise InputError(
                f"objective=image_classification needs at least two classes, data.path holds "
                f"{' '.join(spec.classes) or 'none'}: prepare a folder with one subfolder for each class, or choose "
                "objective=masked_image, which needs no labels"
            )
        self.config, self.spec, self.training = config, spec, training
        self.classes, self.image_size = spec.classes, spec.grid.image_size
        self.mixes = training and (config.mixup > 0 or config.cutmix > 0)

    def for_evaluation(self) -> Self:
        """Its samples are the middle of each image, unmixed."""
        return type(self)(self.config, self.spec, training=False)

    def packing(self) -> Single:
        return Single(partner=self.mixes)

    def corrupt(self, segments: Sequence[EncodedImage], rng: np.random.Generator) -> Sample:
        """segments: an image and, if images are mixed, its partner."""
        image, weight = self._view(segments[0], rng), 1.0
        if self.mixes:
            image, weight = self._mix(image, self._view(segments[1], rng), rng)
        return {
            "image": image,
            "labels": np.array([segments[0].label, segments[-1].label]),
            "weight": np.array(weight, np.float32),
        }

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> images uint8 [batch, 3, image_size, image_size], labels int64 [batch, 2], weights fp32 [batch]."""
        return {
            "images": np.stack([s["image"] for s in samples]),
            "labels": np.stack([s["labels"] for s in samples]),
            "weights": np.stack([s["weight"] for s in samples]),
        }

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return dict.fromkeys((*self.terms, *self.metrics), len(samples))

    def size(self, sample: Sample) -> int:
        return 1

    def heads(self, model: ImageEncoder, layers: Layers) -> dict[str, nn.Module]:
        return {"head": model.make_class_head()}

    def loss(self, model: ImageEncoderWithHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
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

    def flops_per_unit(self, model: ImageEncoderWithHead) -> float:
        return model.flops_per_image()

    def describe(self, sample: Sample) -> str:
        first, second = (self.classes[number] for number in sample["labels"])
        weight = float(sample["weight"])
        return first if weight == 1.0 else f"{weight:.2f} {first} + {1 - weight:.2f} {second}"

    def picture(self, sample: Sample) -> Image.Image:
        return picture_grid([[sample["image"]]], [self.describe(sample)])

    def demonstrate(self, model: ImageEncoderWithHead, demonstration: Demonstration) -> str:
        """The labels that the model gives to validation images, as text and as run_dir/predictions.png."""
        import torch

        samples = demonstration.samples[:SHOWN_IMAGES]
        images = on_device_of(model, self.collate(samples))["images"]
        model.eval()
        with torch.no_grad():
            logits = model.head(model(self.config.normalize(images)))
        likelihoods, numbers = logits.float().softmax(-1).max(-1)
        truth = [self.classes[s["labels"][0]] for s in samples]
        guesses = [f"{self.classes[n]} ({p:.0%})" for n, p in zip(numbers.tolist(), likelihoods.tolist(), strict=True)]
        captions = [f"{guess}\nis {label}" for guess, label in zip(guesses, truth, strict=True)]
        path = demonstration.run_dir / "predictions.png"
        write_picture(picture_grid([[s["image"] for s in samples]], captions), path)
        lines = [f"predicted {guess}, is {label}" for guess, label in zip(guesses, truth, strict=True)]
        return "\n".join([*lines, f"picture: {path}"])

    def _view(self, image: EncodedImage, rng: np.random.Generator) -> Pixels:
        if not self.training:
            return self.config.evaluation_view(image, self.image_size)
        view = self.config.training_view(image, self.image_size, rng)
        augment = RAND_AUGMENT[self.config.rand_augment_kind]
        return pixels(augment(view, self.config.rand_augment_ops, self.config.rand_augment_magnitude, rng))

    def _mix(self, image: Pixels, partner: Pixels, rng: np.random.Generator) -> tuple[Pixels, float]:
        """-> (pixels, weight of the first one's label)."""
        use_mixup = rng.random() < 0.5 if self.config.mixup and self.config.cutmix else self.config.mixup > 0
        alpha = self.config.mixup if use_mixup else self.config.cutmix
        weight = float(rng.beta(alpha, alpha))
        return (mixup(image, partner, weight), weight) if use_mixup else cutmix(image, partner, weight, rng)
