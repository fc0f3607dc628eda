"""The README's first command, shrunk: the same three commands as `make quickstart`."""

import re
import sys
import sysconfig
from pathlib import Path

from tests.helpers import ROOT, metrics, run_process, valid_losses

BIN = Path(sys.executable).parent


def test_quickstart_shrunk(tmp_path):
    stdlib = Path(sysconfig.get_path("stdlib"))
    data = run_process(str(BIN / "pretrain-data"), f"corpus.inputs=[{stdlib}/a*.py,{stdlib}/json,{stdlib}/email]",
                       "corpus.exclude=['*/test/*']", f"output={tmp_path / 'data'}", "tokenizer.vocab_size=512",
                       "valid_fraction=0.05")
    assert data.returncode == 0, data.stderr
    run = run_process(str(BIN / "pretrain"), "experiment=quickstart_gpt", f"data.path={tmp_path / 'data'}",
                      f"run_dir={tmp_path / 'run'}", "train.steps=12", "train.eval_every=6", "train.eval_batches=1",
                      "scheduler.warmup_steps=3", "model.max_seq_len=64", "train.checkpoint_every=6")
    assert run.returncode == 0, run.stderr
    first, *_, last = valid_losses(tmp_path / "run").values()
    assert last < first and 12 in metrics(tmp_path / "run")
    assert f"validation loss {first:.4f} -> {last:.4f}" in run.stdout and "loss.png" in run.stdout
    shown = run_process(sys.executable, "-m", "pretraining.commands.show", f"run_dir={tmp_path / 'run'}")
    assert shown.returncode == 0 and len(shown.stdout) > 20, shown.stderr


def test_the_makefile_runs_what_is_tested_here():
    quickstart = re.search(r"^quickstart:.*?\n\n", (ROOT / "Makefile").read_text(), re.S | re.M).group()
    for part in ("pretrain-data", "experiment=quickstart_", "pretraining.commands.show"):
        assert part in quickstart
