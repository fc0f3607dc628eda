"""What the documentation lists is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.run.metrics import EvaluationLine, TrainingLine, as_written
from tests.helpers import ROOT
from tests.models import catalog


def keys_of_lines() -> set[str]:
    """Every key that a line of metrics.jsonl can have, but those of an objective's own terms and metrics."""
    found: set[str] = set()
    for unit in ("tokens", "images"):
        evaluation = EvaluationLine(1, 1.0, {}, lacking=["term"], unit=unit, units=1, bits_per_byte=1.0, flops=1.0)
        found |= set(as_written(evaluation, 1.0))
        line = TrainingLine(
            step=1,
            loss=1.0,
            grad_norm=1.0,
            lr=1.0,
            samples=1,
            unit=unit,
            units=1,
            step_seconds=1.0,
            units_per_second=1.0,
            batch_hash=1,
            utilization={"tflops": 1.0, "mfu": 1.0},
            parts={},
            lacking=["term"],
            skipped=True,
            loss_scale=1.0,
            spike=True,
            rank_seconds=(1.0, 2.0),
            flops=1.0,
            data_seconds=1.0,
            training_seconds=1.0,
            peak_bytes=1,
            loss_max=1.0,
        )
        found |= set(as_written(line, 1.0))
    return found


def test_users_md_lists_every_key_of_metrics_jsonl() -> None:
    text = (ROOT / "docs/users.md").read_text()
    table = text[text.index("### metrics.jsonl") : text.index("## Exit codes")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == keys_of_lines()


def test_models_md_is_what_the_code_has(corpus: Path) -> None:
    assert catalog.PAGE.read_text() == catalog.page(Tokenizer.load(corpus / "tokenizer")), "run make models"
