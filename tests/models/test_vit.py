"""ViT and MAE against transformers' models, published counts and the statistics of drop path."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from pretraining.config import RunConfig
from pretraining.models.mae import huggingface as mae
from pretraining.models.mae.config import MAEConfig
from pretraining.models.vit import huggingface as vit
from pretraining.models.vit.config import ViTConfig
from pretraining.models.vit.model import DropPath, sinusoidal_positions
from pretraining.patches import patchify, unpatchify
from tests.building import build

SMALL = ViTConfig(
    name="vit", num_layers=2, hidden_size=32, num_heads=4, image_size=24, patch_size=8, intermediate_size=48
)
SMALL_MAE = MAEConfig(
    name="mae",
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    image_size=24,
    patch_size=8,
    positions="sinusoidal",
    decoder_num_layers=1,
    decoder_hidden_size=16,
    decoder_num_heads=2,
)


def preset(name: str, objective: str) -> Any:
    overrides = [f"model={name}", f"objective={objective}", "data.path=nowhere"]
    return compose_config("pretrain", overrides, RunConfig).model


def on_meta(config: Any, classes: int) -> Any:
    with torch.device("meta"):
        return build(config, classes)


def write_folder(folder: Path, module: Any, model: Any) -> None:
    """The model as a Hugging Face folder, by its family's map."""
    (folder / "config.json").write_text(json.dumps(module.huggingface_config(model, {})))
    ours = model.state_dict()
    save_file(
        {m.theirs: m.export(ours[m.ours]).contiguous() for m in module.weight_map(model)},
        folder / "model.safetensors",
    )


def restored(folder: Path, module: Any, config: Any, classes: int) -> Any:
    theirs = load_file(folder / "model.safetensors")
    model = build(config, classes)
    model.load_state_dict({m.ours: m.restore(theirs[m.theirs]) for m in module.weight_map(model)})
    return model.eval()


def randomized(model: Any) -> Any:
    """Every weight drawn: a fresh head and fresh biases are 0 and would hide an exchange."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model.eval()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny", 5_717_416),
        ("vit_small", 22_050_664),
        ("vit_base", 86_567_656),
        ("vit_large", 304_326_632),
        ("vit_huge", 632_045_800),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert on_meta(preset(name, "image_classification"), 1000).published_parameters() == count


@pytest.mark.parametrize("name", ["mae_vit_base", "mae_vit_large", "mae_vit_huge"])
def test_mae_counts_are_those_of_transformers(name: str) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = preset(name, "masked_image")
    with torch.device("meta"):
        model = ViTMAEForPreTraining(ViTMAEConfig(**mae.huggingface_config(build(config, 0), {})))
    assert on_meta(config, 0).published_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_logits_equal_those_of_transformers_both_ways(positions: str, tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    config = ViTConfig(**{**vars_of(SMALL), "positions": positions})
    model = randomized(build(config, 5))
    write_folder(tmp_path, vit, model)
    theirs = ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    logits = model.head(model(images))
    assert difference(logits, theirs(images).logits) < 1e-5
    back = restored(tmp_path, vit, config, 5)
    assert difference(back.head(back(images)), logits) == 0.0


def test_a_published_config_gives_our_keys_back() -> None:
    values = vit.huggingface_config(build(SMALL, 5), {})
    again = ViTConfig(**vit.from_huggingface_config(values))
    assert again == ViTConfig(**{**vars_of(SMALL), "num_classes": 5})
    assert MAEConfig(**mae.from_huggingface_config(mae.huggingface_config(build(SMALL_MAE, 0), {}))) == MAEConfig(
        **{**vars_of(SMALL_MAE), "intermediate_size": 128}
    )
    with pytest.raises(InputError, match="hidden_act"):
        vit.from_huggingface_config({**values, "hidden_act": "relu"})


def test_mean_pooling_has_no_class_token_and_no_counterpart() -> None:
    config = ViTConfig(**{**vars_of(SMALL), "pooling": "mean"})
    model = randomized(build(config, 5))
    images = torch.randn(2, 3, 24, 24)
    assert "encoder.class_token" not in dict(model.named_parameters())
    assert difference(model(images), model.encoder(images).mean(1)) == 0.0
    assert model.encoder(images).shape == (2, 9, 32)
    with pytest.raises(InputError, match="pooling"):
        vit.huggingface_config(model, {})


def test_mae_loss_equals_that_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTMAEForPreTraining

    from pretraining.objectives.base import SampleSpec
    from pretraining.objectives.image.masked_image import MaskedImage, MaskedImageConfig

    config = SMALL_MAE
    model = randomized(build(config, 0))
    write_folder(tmp_path, mae, model)
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    noise = torch.rand(4, 9)
    for normalized in (True, False):
        theirs = ViTMAEForPreTraining.from_pretrained(tmp_path, dtype=torch.float32, norm_pix_loss=normalized).eval()
        objective_config = MaskedImageConfig(name="masked_image", norm_pix_loss=normalized)
        objective = MaskedImage(objective_config, SampleSpec(grid=config.grid))
        visible = noise.argsort(1)[:, : objective.kept].sort(1).values
        loss = objective.loss(model, {"images": images, "visible": visible})["masked_image"]
        loss = loss / (4 * (9 - objective.kept))
        expected = theirs(objective.config.normalize(images), noise=noise).loss
        assert difference(loss, expected) < 1e-5


def test_patches_are_in_reading_order_and_come_back() -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert torch.equal(patches[1, 1].view(3, 4, 4), images[1, :, :4, 4:])
    assert torch.equal(unpatchify(patches, 4), images)


def test_sinusoidal_positions_by_hand() -> None:
    """Column 1 of row 0, with one frequency (1): sine and cosine of the column, then of the row."""
    table = sinusoidal_positions(2, 4, class_token=True)
    assert torch.equal(table[0], torch.zeros(4))
    assert np.allclose(table[2], [np.sin(1), np.cos(1), 0, 1])


def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.3).train()
    out = layer(torch.ones(20000, 2, 3))
    dropped = (out == 0).all(-1).all(-1)
    assert abs(float(dropped.float().mean()) - 0.3) < 0.01
    assert torch.allclose(out[~dropped], torch.tensor(1 / 0.7))
    assert torch.equal(layer.eval()(out), out)


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    config = ViTConfig(**{**vars_of(SMALL), "num_layers": 3, "drop_path": 0.2})
    rates = [block.drop_path.rate for block in on_meta(config, 5).encoder.blocks]
    assert np.allclose(rates, [0.0, 0.1, 0.2])


def test_activation_checkpointing_changes_no_gradient() -> None:
    images, gradients = torch.randn(2, 3, 24, 24), []
    for flag in (False, True):
        model = randomized(build(ViTConfig(**{**vars_of(SMALL), "activation_checkpointing": flag}), 5))
        model.train()
        model.head(model(images)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (build(SMALL, 5) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.initialize(seed)
    weights = [m.encoder.blocks[0].attention.query.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    bound = (6 / 64) ** 0.5
    assert 0.9 * bound < float(weights[0].detach().abs().max()) <= bound
    assert float(first.head.weight.detach().abs().sum()) == 0.0


def test_mae_draws_queries_keys_and_values_as_parts_of_one_matrix() -> None:
    """models_mae.py applies Xavier to timm's fused matrix: uniform up to sqrt(6 / (fan in + 3 x fan out))."""
    model = build(SMALL_MAE, 0)
    model.initialize(1)
    for name, parameter in model.named_parameters():
        if name.endswith("position_embedding") or parameter.ndim < 2:
            continue
        fan_out, fan_in = parameter.shape
        fused = name.endswith(("query.weight", "key.weight", "value.weight"))
        bound = math.sqrt(6 / (fan_in + (3 if fused else 1) * fan_out))
        assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound, name
        assert float(parameter.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_flops_of_vit_base_are_the_known_ones() -> None:
    """17.6 billion multiply-adds forward (Touvron et al. 2020, "DeiT", table 5): 2 FLOPs each, three times."""
    assert on_meta(preset("vit_base", "image_classification"), 1000).flops_per_image() / 6 == pytest.approx(
        17.5e9, rel=0.02
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"patch_size": 7}, "model.patch_size=7"),
        ({"num_heads": 5}, "model.num_heads=5"),
        ({"positions": "sinusoidal", "hidden_size": 30, "num_heads": 3}, "not divisible by 4"),
    ],
)
def test_problems_name_the_key(change: dict[str, Any], key: str) -> None:
    assert any(key in problem for problem in ViTConfig(**{**vars_of(SMALL), **change}).problems())


def vars_of(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
