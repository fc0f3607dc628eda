"""pretrain-submit with a stand-in for the folder slurm/: the first argument."""

from __future__ import annotations

import sys
from pathlib import Path

from pretraining.cluster import snapshot
from pretraining.commands import submit

if __name__ == "__main__":
    scripts = Path(sys.argv.pop(1))
    snapshot.slurm_dir = submit.slurm_dir = lambda: scripts  # type: ignore[assignment]
    sys.exit(submit.main())
