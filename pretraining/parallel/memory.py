"""How much memory a rank has taken at most."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_bytes(device: torch.device) -> int:
    """Since the process began: of a GPU what torch had allocated, on a CPU all of the process's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
