"""Masked autoencoding: the mask, what the encoder sees, the target, and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.common.errors import InputError
from data_pipeline.shards.images import EncodedImage
from pretraining.models.mae.config import MAEConfig
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.image.masked_image import MaskedImage, MaskedImageConfig
from pretraining.patches import PatchGrid, patchify, unpatchify
from tests.building import build
from tests.helpers import metrics, train_alone
from tests.images import png, prepare_images, write_digits

GRID = PatchGrid(16, 4)
MODEL = MAEConfig(
    name="mae",
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    image_size=16,
    patch_size=4,
    positions="sinusoidal",
    decoder_num_layers=1,
    decoder_hidden_size=8,
    decoder_num_heads=2,
)


def objective(**options: float) -> MaskedImage:
    config = MaskedImageConfig(name="masked_image", mean=[0.0] * 3, std=[1.0] * 3, **options)
    return MaskedImage(config, SampleSpec(grid=GRID))


def encoded(seed: int = 0) -> EncodedImage:
    array = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return EncodedImage(png(array), 0, "x")


def model() -> torch.nn.Module:
    made = build(MODEL, 0)
    made.initialize(1)
    return made.eval()


def test_a_quarter_is_visible_and_every_patch_alike() -> None:
    maker, image = objective(), encoded()
    drawn = [maker.corrupt([image], np.random.default_rng(seed))["visible"] for seed in range(1500)]
    assert all(len(set(v.tolist())) == 4 and (np.diff(v) > 0).all() for v in drawn)
    rates = np.bincount(np.concatenate(drawn), minlength=16) / len(drawn)
    assert abs(rates - 0.25).max() < 0.04
    assert maker.counts([{}, {}]) == {"masked_image": 24}
    again = maker.corrupt([image], np.random.default_rng(7))
    assert np.array_equal(again["visible"], drawn[7])


def test_a_mask_of_everything_is_refused() -> None:
    with pytest.raises(InputError, match=r"mask_ratio=0.99 leaves none of 16"):
        objective(mask_ratio=0.99)


def test_the_encoder_sees_visible_patches_alone() -> None:
    images, net = torch.rand(2, 3, 16, 16), model()
    visible = torch.tensor([[0, 5, 6, 15], [1, 2, 3, 9]])
    masked = torch.ones(2, 16, dtype=torch.bool).scatter(1, visible, False)
    patches = patchify(images, 4)
    changed = unpatchify(torch.where(masked[..., None], torch.rand_like(patches), patches), 4)
    assert not torch.equal(images, changed)
    assert torch.equal(net.encoder(images, visible), net.encoder(changed, visible))
    assert net.encoder(images, visible).shape == (2, 5, 16)
    assert torch.equal(net(images, visible), net(changed, visible))


def test_the_decoder_s_mask_tokens_differ_by_position_alone() -> None:
    """With the positions taken away, all masked patches get the same pixels."""
    net, visible = model(), torch.tensor([[0, 5, 6, 15]])
    net.decoder.position_embedding.zero_()
    out = net(torch.rand(1, 3, 16, 16), visible)[0]
    masked = [i for i in range(16) if i not in visible[0].tolist()]
    assert torch.allclose(out[masked], out[masked[0]].expand(12, -1), atol=1e-6)
    assert not torch.allclose(out[0], out[masked[0]], atol=1e-4)


def test_normalised_pixels_by_hand() -> None:
    """A patch of 48 values, half of them 0 and half 1: mean 1/2, variance 12/47."""
    images = torch.zeros(1, 3, 16, 16)
    images[:, :, :, ::2] = 1.0
    targets = objective().targets(images)[0, 0]
    assert torch.allclose(targets[:2], torch.tensor([0.5, -0.5]) / (12 / 47 + 1e-6) ** 0.5)
    assert torch.equal(objective(norm_pix_loss=False).targets(images), patchify(images, 4))


def test_only_masked_patches_are_counted() -> None:
    class Zero(torch.nn.Module):
        def forward(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 16, 48)

    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 0, 0], images[:, :, 15, 15] = 255, 255  # one pixel of the first patch and of the last
    maker = objective(norm_pix_loss=False)
    for visible, expected in (([0, 1, 2, 3], 1 / 16), ([0, 1, 2, 15], 0.0), ([4, 5, 6, 7], 2 / 16)):
        loss = maker.loss(Zero(), {"images": images, "visible": torch.tensor([visible])})["masked_image"]
        assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("normalized", [True, False])
def test_demonstration_keeps_the_visible_patches(normalized: bool, tmp_path: Path) -> None:
    maker, net = objective(norm_pix_loss=normalized), model()
    samples = [maker.for_evaluation().corrupt([encoded(i)], np.random.default_rng(i)) for i in range(2)]
    text = maker.demonstrate(net, Demonstration(samples, tmp_path, 1))
    assert "reconstruction.png" in text
    with Image.open(tmp_path / "reconstruction.png") as picture:
        assert picture.height == 3 * (96 + 4) and picture.width == 2 * (96 + 4)
    images = maker.config.normalize(torch.from_numpy(samples[0]["image"][None]))
    visible = torch.from_numpy(samples[0]["visible"][None])
    with torch.no_grad():
        back = maker._reconstruction(images, net, visible)
    assert torch.equal(patchify(back, 4)[0, visible[0]], patchify(images, 4)[0, visible[0]])
    assert maker.picture(samples[0]).width == 200 and "4 of 16 patches" in maker.describe(samples[0])


def test_the_loss_falls(tmp_path: Path) -> None:
    assert prepare_images(write_digits(tmp_path / "in", count=200), tmp_path / "data", "valid_fraction=0.1") == 0
    train_alone(
        "model=mae_debug",
        "model.image_size=8",
        "model.patch_size=2",
        "model.num_layers=2",
        "model.hidden_size=32",
        "objective=masked_image",
        f"data.path={tmp_path / 'data'}",
        "objective.crop_scale=[0.9,1.0]",
        "objective.flip_probability=0",
        "objective.norm_pix_loss=false",
        "train.steps=40",
        "train.global_batch_size=16",
        "train.micro_batch_size=16",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "optimizer.lr=3e-3",
        "scheduler.warmup_steps=5",
        "tracking.wandb=disabled",
        "data.num_workers=0",
        f"run_dir={tmp_path / 'run'}",
    )
    lines = metrics(tmp_path / "run")
    assert lines[40]["loss"] < 0.6 * lines[1]["loss"]
