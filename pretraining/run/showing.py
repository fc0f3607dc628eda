"""run_dir/samples: what the model makes of validation samples at each evaluation."""

from __future__ import annotations

SAMPLES, TEXT = "samples", "samples.txt"
