"""Learning beside a plain loop: a small share of `make convergence`, and the pieces that its reference is made of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.convergence import inputs, table
from benchmarks.convergence.bert import Reference as BertReference
from benchmarks.convergence.pairs import compare, prepare, workers
from benchmarks.convergence.recipes import RECIPES
from benchmarks.convergence.reference import learning_rate
from benchmarks.convergence.t5 import Reference as T5Reference
from benchmarks.convergence.t5 import inputs_length, noise_mask

SMALL = replace(
    RECIPES["gpt"],
    train=(*RECIPES["gpt"].train, "model.num_layers=2", "model.hidden_size=64", "model.max_seq_len=32"),
    steps=400,
    batch=24,
    lr=3e-3,
    final_lr=0.0,
)
# Nats. Of three seeds, random crops and cuts in random order differ by at most 0.02; batches of neighboring cuts are
# 0.05 to 0.09 behind.
BOUND = 0.03


def test_gpt_learns_as_in_a_plain_loop(tmp_path: Path) -> None:
    with workers(1) as pool:
        prepared = pool.submit(prepare, SMALL, tmp_path / "gpt").result()
        losses = compare(pool, prepared, [1])
    assert losses.ours[0] - losses.reference[0] < BOUND


def test_schedules_agree() -> None:
    """The reference's own schedule and this framework's, with which it must be fair."""
    from pretraining.optim.schedules import WarmupCosineConfig

    recipe = RECIPES["gpt"]
    ours = WarmupCosineConfig("warmup_cosine", recipe.warmup_steps, min_ratio=recipe.final_lr / recipe.lr)
    for step in (1, 50, 100, 101, 1000, 1999, 2000):
        assert learning_rate(recipe, step) == pytest.approx(recipe.lr * ours.ratio(step, recipe.steps))


def test_spans_are_those_of_the_paper() -> None:
    """512 tokens are what 568 leave, 85 of them noise in 28 spans (Raffel et al. 2019, section 3.1.4)."""
    assert max(n for n in range(2, 1024) if inputs_length(n) <= 512) == 568
    mask = noise_mask(568, np.random.default_rng(1))
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    assert (mask.sum(), begins.sum(), mask[0], mask[-1]) == (85, 28, False, True)


def test_spans_come_back_from_inputs_and_labels() -> None:
    reference = T5Reference.__new__(T5Reference)
    reference.eos, reference.sentinels = 1, list(range(1000, 1100))
    tokens, rng = np.arange(100, 241), np.random.default_rng(2)
    batch = reference._corrupted(tokens[None], rng)
    inputs_row, labels_row = (batch[name][0].tolist() for name in ("inputs", "labels"))
    spans: dict[int, list[int]] = {}
    for token in labels_row[:-1]:
        if token >= 1000:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    restored = [t for token in inputs_row[:-1] for t in spans.get(token, [token])]
    assert restored == tokens.tolist() and inputs_row[-1] == labels_row[-1] == 1


def test_masks_hide_fifteen_percent() -> None:
    class Tokenizer:
        pad_token_id, cls_token_id, sep_token_id, mask_token_id = 0, 1, 2, 3

    reference = BertReference.__new__(BertReference)
    reference.tokenizer, reference.length, reference.words = Tokenizer, 128, np.arange(10, 5000)
    rows = [np.arange(5000, 5126)] * 400
    batch = {name: array.numpy() for name, array in reference._masked(rows, np.random.default_rng(3)).items()}
    predicted = batch["labels"] != -100
    assert (predicted.sum(1) == 19).all() and not predicted[:, [0, -1]].any()
    seen = batch["tokens"][predicted]
    kept = seen == batch["labels"][predicted]
    assert np.mean(seen == 3) == pytest.approx(0.8, abs=0.02) and np.mean(kept) == pytest.approx(0.1, abs=0.02)


def test_a_section_of_the_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    table.replace_section("a", table.markdown(("x", "y"), [("1", "2")]), page)
    assert page.read_text() == "before\n<!-- a -->\n| x | y |\n| --- | --- |\n| 1 | 2 |\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="markers of b"):
        table.replace_section("b", "", page)


@pytest.mark.parametrize("name", ["convergence", "convergence-optimizers"])
def test_the_page_and_the_makefile_have_both_tables(name: str) -> None:
    assert f"<!-- {name} -->" in table.PAGE.read_text()
    assert f"\n{name}: setup\n" in (inputs.ROOT / "Makefile").read_text()


@pytest.mark.parametrize("family", ["gpt", "bert", "t5", "vit"])
def test_without_the_shared_folder_there_is_other_data(family: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRETRAINING_SHARED", str(tmp_path / "nowhere"))
    found, source = inputs.write_inputs(family, tmp_path / "inputs")
    assert all(path.exists() for path in found) and ("Python" in source or "scikit" in source)
