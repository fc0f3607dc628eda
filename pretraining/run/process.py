"""How a process of a job ends."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from typing import NoReturn

from data_pipeline.common.errors import EXIT_DONE, EXIT_INPUT_ERROR
from pretraining.parallel.world import stop_world
from pretraining.run.terminal import flush_streams


def end_process(code: int) -> NoReturn:
    """Ends this process at once, with this exit code.

    torch, DeepSpeed and megatron-core keep process groups in their globals. A thread of theirs that drops the last
    reference to a tensor while the interpreter winds up aborts the process ("terminate called without an active
    exception") after a perfect run: so it is not wound up. Nor are loader workers waited for, which an exception
    can leave behind and which ignore SIGTERM.
    """
    for child in multiprocessing.active_children():
        child.kill()
    # Else other ranks may wait in a collective, or be gone: winding up its groups could wait for them.
    if "torch.distributed" in sys.modules and code in (EXIT_DONE, EXIT_INPUT_ERROR):
        stop_world()
    atexit._run_exitfuncs()
    flush_streams()
    os._exit(code)
