"""Image classification: mixing by hand, augmentation's statistics, and the same batches on any layout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.common.errors import InputError
from data_pipeline.shards.images import EncodedImage
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.image.augmentation import (
    OPERATIONS,
    center_crop,
    cutmix,
    mixup,
    pixels,
    rand_augment,
    random_resized_crop,
)
from pretraining.objectives.image.classification import ImageClassification, ImageClassificationConfig
from pretraining.objectives.image.views import picture_grid
from pretraining.patches import PatchGrid
from tests.helpers import command, metrics, train_alone
from tests.images import png

RUN = (
    "model=vit_debug",
    "model.num_layers=2",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.image_size=8",
    "model.patch_size=4",
    "objective=image_classification",
    "objective.mixup=0.5",
    "objective.cutmix=1.0",
    "objective.rand_augment_ops=2",
    "train.steps=2",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler.warmup_steps=2",
    "tracking.wandb=disabled",
    "data.num_workers=0",
    "data.window_blocks=2",
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def objective(**options: Any) -> ImageClassification:
    config = ImageClassificationConfig(name="image_classification", mean=[0.0] * 3, std=[1.0] * 3, **options)
    return ImageClassification(config, SampleSpec(grid=PatchGrid(8, 4), classes=("cat", "dog", "owl")))


class Scores(torch.nn.Module):
    """A model that answers every image with the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))
        self.head = torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_mixup_by_hand() -> None:
    first, second = (np.full((3, 2, 2), value, np.uint8) for value in (200, 100))
    assert (mixup(first, second, 0.75) == 175).all()


def test_cutmix_by_hand() -> None:
    """Weight 0.75 on 8 x 8: a box of side 4 around the drawn center, cut off at the border."""
    first, second = (np.full((3, 8, 8), value, np.uint8) for value in (1, 2))
    center = iter([7, 3])
    draws = SimpleNamespace(integers=lambda n: next(center))
    mixed, weight = cutmix(first, second, 0.75, draws)  # type: ignore[arg-type]
    expected = first.copy()
    expected[:, 1:5, 5:8] = 2
    assert np.array_equal(mixed, expected)
    assert weight == 1 - 12 / 64


def test_cutmix_s_weight_is_the_share_that_is_left() -> None:
    for seed in range(20):
        first, second = (np.full((3, 16, 16), value, np.uint8) for value in (0, 1))
        mixed, weight = cutmix(first, second, 0.6, rng(seed))
        assert weight == pytest.approx(1 - mixed[0].mean())


def test_a_crop_of_the_whole_is_the_whole() -> None:
    image = Image.fromarray(noise(8, 8))
    assert np.array_equal(pixels(random_resized_crop(image, 8, [1.0, 1.0], [1.0, 1.0], rng())), pixels(image))
    assert np.array_equal(pixels(center_crop(image, 8, 1.0)), pixels(image))


def test_center_crop_takes_the_middle() -> None:
    array = noise(8, 16)
    assert np.array_equal(pixels(center_crop(Image.fromarray(array), 4, 0.5)), array[2:6, 6:10].transpose(2, 0, 1))


def test_crops_cover_the_asked_share_of_the_area(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, how, box: boxes.append(box) or self)
    image, draws = Image.new("RGB", (200, 200)), rng()
    for _ in range(2000):
        random_resized_crop(image, 8, [0.1, 0.5], [0.8, 1.25], draws)
    width, height = (np.array([b[i + 2] - b[i] for b in boxes]) for i in (0, 1))
    area = width * height / 200**2
    assert area.min() > 0.095 and area.max() < 0.505 and abs(area.mean() - 0.3) < 0.01
    assert (width / height).min() > 0.78 and (width / height).max() < 1.28


def test_an_image_too_narrow_for_any_crop_gives_its_middle() -> None:
    array = noise(4, 400)
    view = random_resized_crop(Image.fromarray(array), 4, [0.9, 1.0], [1.0, 1.0], rng())
    assert np.array_equal(pixels(view), array[:, 198:202].transpose(2, 0, 1))


def test_rand_augment_without_strength_keeps_geometry_and_colors() -> None:
    image = Image.fromarray(noise(16, 16))
    for operation in OPERATIONS:
        if operation.__name__ not in ("_auto_contrast", "_equalize"):
            assert np.array_equal(pixels(operation(image, 0.0, 1.0)), pixels(image)), operation.__name__


def test_rand_augment_draws_every_operation_and_sign_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, float, float]] = []
    recorders = [lambda image, strength, sign, i=i: drawn.append((i, strength, sign)) or image for i in range(14)]
    image, draws = Image.fromarray(noise(16, 16)), rng()
    with monkeypatch.context() as patch:
        patch.setattr("pretraining.objectives.image.augmentation.OPERATIONS", recorders)
        for _ in range(2000):
            rand_augment(image, 2, 9.0, draws)
    rates = np.bincount([i for i, _, _ in drawn], minlength=14) / len(drawn)
    assert len(drawn) == 4000 and len(OPERATIONS) == 14 and abs(rates - 1 / 14).max() < 0.015
    assert {s for _, s, _ in drawn} == {0.9} and abs(np.mean([sign for _, _, sign in drawn])) < 0.05
    same = [pixels(rand_augment(image, 2, 9.0, rng(seed))) for seed in (1, 1, 2)]
    assert np.array_equal(same[0], same[1]) and not np.array_equal(same[0], same[2])


def test_flips_come_at_their_rate() -> None:
    maker = objective(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], flip_probability=0.3)
    array = noise(8, 8)
    image, straight = EncodedImage(png(array), 0, "x"), array.transpose(2, 0, 1)
    samples = [maker.corrupt([image], rng(seed))["image"] for seed in range(600)]
    flipped = [np.array_equal(s, straight[:, :, ::-1]) for s in samples]
    assert all(f or np.array_equal(s, straight) for f, s in zip(flipped, samples, strict=True))
    assert abs(np.mean(flipped) - 0.3) < 0.06


def test_a_sample_is_a_pure_function_of_its_generator() -> None:
    maker = objective(mixup=0.4, cutmix=1.0, rand_augment_ops=2)
    pieces = [EncodedImage(png(noise(20, 30, i)), i, "x") for i in range(2)]
    first, again = (maker.corrupt(pieces, rng(5)) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert first["image"].shape == (3, 8, 8) and first["image"].dtype == np.uint8
    assert first["labels"].tolist() == [0, 1] and 0 <= first["weight"] <= 1


def test_mixing_weights_follow_the_beta_distribution() -> None:
    maker = objective(mixup=0.4)
    image = np.zeros((3, 8, 8), np.uint8)
    weights = [maker._mix(image, image, rng(seed))[1] for seed in range(3000)]
    assert abs(np.mean(weights) - 0.5) < 0.02
    assert abs(np.var(weights) - 0.25 / 1.8) < 0.01  # of Beta(a, a): 1 / (4 (2 a + 1))


def test_loss_of_a_mixed_smoothed_image_by_hand() -> None:
    maker, model = objective(label_smoothing=0.3, mixup=0.2), Scores([2.0, 1.0, 0.0])
    batch = {
        "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "labels": torch.tensor([[0, 1], [2, 2]]),
        "weights": torch.tensor([0.75, 1.0]),
    }
    log = torch.tensor([2.0, 1.0, 0.0]).log_softmax(0)
    target = torch.tensor([[0.75 * 0.7 + 0.1, 0.25 * 0.7 + 0.1, 0.1], [0.1, 0.1, 0.8]])
    losses = maker.loss(model.train(), batch)
    assert float(losses["image_classification"].detach()) == pytest.approx(float(-(target * log).sum()))
    assert float(losses["accuracy"]) == 1.0
    plain = maker.loss(model.eval(), batch)["image_classification"].detach()
    assert float(plain) == pytest.approx(float(-(0.75 * log[0] + 0.25 * log[1] + log[2])))


def test_evaluation_sees_the_middle_unmixed() -> None:
    maker = objective(mixup=0.4, rand_augment_ops=2).for_evaluation()
    assert len(maker.packing().plan(np.ones(4)).segments(0)) == 1
    image = EncodedImage(png(noise(16, 16)), 2, "x")
    first, other = (maker.corrupt([image], rng(seed)) for seed in (1, 2))
    assert np.array_equal(first["image"], other["image"])
    assert first["labels"].tolist() == [2, 2] and first["weight"] == 1.0


def test_normalisation_by_hand() -> None:
    config = ImageClassificationConfig(name="image_classification", mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 1.0])
    images = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert torch.allclose(config.normalize(images).flatten(), torch.tensor([1.0, 3.0, 1.0]))
    assert config.denormalize(config.normalize(images)[0]).flatten().tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "override, right",
    [
        ("crop_scale=[0.9,0.1]", "the smaller bound comes first"),
        ("crop_scale=[5,9]", "less than or equal to 1"),
        ("crop_scale=[0,1]", "greater than 0"),
        ("crop_ratio=[2,1]", "the smaller bound comes first"),
        ("std=[0,1,1]", "greater than 0"),
    ],
)
def test_views_that_cannot_be_are_told_by_their_key(
    override: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("pretraining.train", *RUN, "data.path=x", f"objective.{override}") == 2
    told = capsys.readouterr().err
    assert f"objective.{override.split('=')[0]}: " in told and right in told


def test_demonstration_names_labels_and_draws_them(tmp_path: Path) -> None:
    maker = objective()
    samples = [maker.for_evaluation().corrupt([EncodedImage(png(noise(8, 8)), 1, "x")], rng())]
    text = maker.demonstrate(Scores([0.0, 9.0, 0.0]), Demonstration(samples, tmp_path, 1))
    assert "predicted dog (100%), is dog" in text
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.width >= 96
    mixed = {**samples[0], "labels": np.array([0, 1]), "weight": np.float32(0.75)}
    assert maker.describe(mixed) == "0.75 cat + 0.25 dog"
    assert maker.picture(mixed).height > 96


def test_captions_stay_below_their_pictures_and_are_spelt_in_ascii() -> None:
    views = [np.zeros((3, 8, 8), np.uint8)] * 2
    sheet = np.asarray(picture_grid([views], ["a very long name of a class " * 3 + "(97%)", ""]))
    caption = sheet[100:]
    assert (caption[:, 100:] == 255).all() and (caption[:, :100] < 255).any()
    named, spelt = (picture_grid([views], [name, ""]) for name in ("\u732b \U0001f431", r"\u732b \U0001f431"))
    assert np.array_equal(np.asarray(named), np.asarray(spelt))


def test_batches_depend_neither_on_workers_nor_on_micro_batches(digits: Path, tmp_path: Path) -> None:
    hashes, losses = [], []
    for number, change in enumerate(((), ("data.num_workers=2",), ("train.micro_batch_size=8",))):
        run_dir = tmp_path / str(number)
        train_alone(*RUN, f"data.path={digits}", f"run_dir={run_dir}", *change)
        lines = metrics(run_dir)
        hashes.append([line["batch_hash"] for line in lines.values()])
        losses.append([line["loss"] for line in lines.values()])
    assert hashes[0] == hashes[1] == hashes[2] and len(set(hashes[0])) == 2
    assert np.allclose(losses, losses[0], atol=1e-6)


def test_lines_count_images_and_evaluations_tell_accuracy(digits: Path, tmp_path: Path) -> None:
    import json

    train_alone(*RUN, f"data.path={digits}", f"run_dir={tmp_path}", "train.eval_every=2")
    line = metrics(tmp_path)[2]
    assert line["images"] == line["samples"] == 16 and line["images_per_second"] > 0
    assert not {"tokens", "tokens_per_second"} & set(line)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["valid_accuracy"] <= 1 and last["valid_loss"] == last["valid_image_classification"]


@pytest.mark.parametrize("experiment", ["vit_s16_imagenet", "mae_vit_base"])
def test_recipes_take_two_shrunken_steps(experiment: str, digits: Path, tmp_path: Path) -> None:
    train_alone(
        f"experiment={experiment}",
        f"data.path={digits}",
        f"run_dir={tmp_path}",
        "model.num_layers=1",
        "model.hidden_size=16",
        "model.num_heads=2",
        "model.image_size=32",
        "train.steps=2",
        "train.global_batch_size=4",
        "train.micro_batch_size=4",
        "train.eval_every=2",
        "train.eval_batches=1",
        "train.checkpoint_every=0",
        "train.log_every=1",
        "data.num_workers=0",
        "scheduler.warmup_steps=1",
        "train.precision=fp32",
        "tracking.wandb=disabled",
    )
    assert len(metrics(tmp_path)) == 2


def test_data_and_objective_that_do_not_fit_are_told_at_once(
    digits: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides, message in (
        (("model=gpt_debug", f"data.path={digits}"), "holds images, objective=causal_lm needs text"),
        ((*RUN, f"data.path={corpus}"), "holds text, objective=image_classification needs images"),
        ((*RUN, f"data.path={digits}", "model.num_classes=7"), "model.num_classes=7"),
        (
            (*RUN, f"data.path={digits}", "objective=causal_lm"),
            "does not fit model=vit_debug: objective=image_classification fits",
        ),
        (("model=gpt_debug", "objective=masked_image", f"data.path={digits}"), "does not fit model=gpt_debug"),
        ((*RUN, f"data.path={digits}", "data.seq_len=8"), "data.seq_len=8"),
    ):
        if "objective=causal_lm" in overrides:
            overrides = tuple(o for o in overrides if "objective." not in o and o != "objective=image_classification")
        assert command("pretraining.train", *overrides) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("classes", [(), ("only",)])
def test_less_than_two_classes_are_refused(classes: tuple[str, ...]) -> None:
    spec = SampleSpec(grid=PatchGrid(8, 4), classes=classes)
    with pytest.raises(InputError, match=r"needs at least two classes, data\.path holds"):
        ImageClassification(ImageClassificationConfig(name="image_classification"), spec)
