"""What a run's own module does to it: `modules=[tests.slurm.pace]`, as files in the folder PACE say.

slow: each step takes half a second more, so that what disturbs the run meets it in a step. kill: before a step rank 0
removes the file and is killed; kill_always: the same, and the file stays.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pretraining.trainer import Trainer

FOLDER = Path(os.environ["PACE"])
SECONDS = 0.5

_train_step = Trainer.train_step


def train_step(self: Trainer, data: Any, began: float) -> float:
    if (FOLDER / "slow").exists():
        time.sleep(SECONDS)
    for name in ("kill", "kill_always"):
        if self.world.is_main and (FOLDER / name).exists():
            if name == "kill":
                (FOLDER / name).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return _train_step(self, data, began)


Trainer.train_step = train_step  # type: ignore[method-assign]
