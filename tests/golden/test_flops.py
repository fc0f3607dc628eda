"""FLOPs against published figures, against those that torch counts, and as metrics.jsonl tells them of one rank."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.golden import batches, flops, losses
from tests.golden.inner import utilization
from tests.golden.runs import Case, Data, read_metrics
from tests.golden.values import check, check_cases
from tests.helpers import start_ranks

STEP = ("model.num_layers=2", "train.steps=1", "train.eval_every=0", "scheduler.warmup_steps=0")
WRITTEN = 7  # tokens of T5's decoder, for 32 of its encoder: the share that its FLOPs assume (114 for 512)


@pytest.mark.parametrize("preset", flops.PRESETS)
def test_flops_are_the_pinned_ones(preset: str) -> None:
    check(flops.KIND, preset, flops.compute(preset), relative=1e-9)


def test_every_pinned_preset_is_tested() -> None:
    check_cases(flops.KIND, flops.PRESETS)


@pytest.mark.parametrize("preset", flops.PUBLISHED)
def test_flops_are_the_published_ones(preset: str) -> None:
    published = flops.PUBLISHED[preset]
    found = flops.compute(preset)
    assert found == pytest.approx(published.flops, rel=published.relative), published.source


def test_flops_of_mae_save_what_was_published() -> None:
    """Against encoding every patch, as a ViT does."""
    ratio = flops.compute("mae_vit_large", "objective.mask_ratio=0.001") / flops.compute("mae_vit_large")
    published = flops.MAE_RATIO
    assert ratio == pytest.approx(published.flops, rel=published.relative), published.source


@pytest.mark.parametrize("family", losses.FAMILIES)
def test_flops_are_those_that_torch_counts(family: str, golden_data: Data) -> None:
    """Of every matrix product in a step, padding with it. The tolerance covers the embedding of patches, whose input
    needs no gradient; half of an attention would be 4% and more."""
    kind, *chosen = losses.FAMILIES[family]
    targets = (f"objective.targets_length={WRITTEN}",) if family == "t5" else ()
    case = Case(family, kind, (*chosen, *targets, *STEP))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # torch counts no fused one on CPUs
        (line,) = case.run(golden_data)
    units = {"images": 64, "text": 32 * 32, "t5": 32 * (32 + WRITTEN)}["t5" if family == "t5" else kind]
    assert flops_of(line, ranks=1) == pytest.approx(counter.get_total_flops() / units, rel=0.025)


@pytest.fixture(scope="module")
def tensor_parallel_lines(golden_data: Data, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """metrics.jsonl of the plain causal_lm run, by two ranks that share each tensor."""
    run_dir = str(tmp_path_factory.mktemp("tensor_parallel"))
    overrides = causal_lm().command_line(golden_data, run_dir)
    ranks = start_ranks(2, *overrides, "engine=megatron", "engine.tensor_parallel=2")
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:  # where one fails, the other would wait for it
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    return read_metrics(run_dir)


def test_tensor_parallel_ranks_count_a_batch_once(tensor_parallel_lines: list[dict[str, Any]]) -> None:
    """What both of them hold is one sample and one token: sums on the host over all ranks are divided by them."""
    found = {key: [int(line[key]) for line in tensor_parallel_lines] for key in ("batch_hash", "tokens")}
    check(batches.KIND, causal_lm().name, found)


def test_tensor_parallel_ranks_have_the_loss_of_one(
    tensor_parallel_lines: list[dict[str, Any]], golden_data: Data
) -> None:
    alone = causal_lm().run(golden_data)
    assert [line["loss"] for line in tensor_parallel_lines] == pytest.approx([x["loss"] for x in alone], rel=1e-5)


def test_tflops_are_those_of_one_rank(tensor_parallel_lines: list[dict[str, Any]], golden_data: Data) -> None:
    alone = flops_of(causal_lm().run(golden_data)[0], ranks=1)
    assert [flops_of(line, ranks=2) for line in tensor_parallel_lines] == pytest.approx([alone] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),  # NVIDIA's data sheets: dense bf16 (V100: fp16)
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-32GB", 125e12),
    ],
)
def test_utilization_is_that_of_one_rank(device: str, peak: float) -> None:
    """Eight ranks that do in two seconds what eight devices could do in one are half utilized."""
    found = utilization(8 * peak, seconds=2.0, ranks=8, device=device)
    assert found["mfu"] == pytest.approx(0.5, rel=0.001)
    assert found["tflops"] == pytest.approx(peak / 2 / 1e12)


def causal_lm() -> Case:
    """The run that the plain causal_lm line of batches.json pins."""
    return next(case for case in batches.CASES if case.name == "causal_lm")


def flops_of(line: dict[str, Any], ranks: int) -> float:
    """Of a token or an image, by a line of metrics.jsonl."""
    rate = line["images_per_second"] if "images_per_second" in line else line["tokens_per_second"]
    return float(line["tflops"] * 1e12 * ranks / rate)
