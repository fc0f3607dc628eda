"""How it shows that another rank is gone or hangs: by the errors of torch's collectives and stores."""

from __future__ import annotations

import re
import sys


class LostPeer(Exception):
    """Another rank is gone, or did not answer in time. A restart fixes it: exit code 75."""


# gloo's errors have no class of their own. Its messages name its source files.
_GLOO = re.compile(r"gloo/|Connection closed by peer|Connection reset by peer|Timed out waiting \d+ms")


def lost_peer(error: BaseException) -> str | None:
    """What `error`, or what led to it, says of a lost peer; None where it tells of something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LostPeer) or _is_of_torch(cause):
            return _first_line(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _is_of_torch(error: BaseException) -> bool:
    if "torch.distributed" not in sys.modules or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or bool(_GLOO.search(str(error)))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
