"""The healthy things that cases change: prepared text and images, a run, its export. Made once, in seconds."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from tests.helpers import command
from tests.hostile.case import EXPORT, PREPARE, TINY, TRAIN
from tests.images import write_digits

MODULES = ("argparse", "ast", "calendar", "copy", "csv", "difflib")


def make_base(base: Path) -> None:
    """base/{texts,data,digits,images,run,hub}."""
    (base / "texts").mkdir(parents=True)
    for name in MODULES:
        text = (Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_text()
        (base / "texts" / f"{name}.txt").write_text(text[:20000])
    write_digits(base / "digits", count=40)
    text_data = (f"corpus.inputs=[{base}/texts]", "tokenizer.vocab_size=400", "block_tokens=4096", "valid_fraction=0.2")
    _do(PREPARE, *text_data, f"output={base}/data", "num_workers=0")
    image_data = ("corpus=images", f"corpus.inputs=[{base}/digits]", f"output={base}/images", "valid_fraction=0.2")
    _do(PREPARE, *image_data, "num_workers=0")
    run = (f"data.path={base}/data", f"run_dir={base}/run", "train.steps=2", "train.checkpoint_every=1")
    _do(TRAIN, *TINY[:-4], *TINY[-3:], *run)
    _do(EXPORT, f"checkpoint={base}/run", f"output={base}/hub")


def _do(module: str, *arguments: str) -> None:
    if command(module, *arguments) != 0:
        sys.exit(f"{module} {arguments} failed: there is nothing to change")
