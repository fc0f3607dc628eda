"""Texts between the ranks of a process group, as bytes in tensors.

torch's collectives of objects unpickle what any peer sends, and so execute it: none of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LONGEST_TEXT = 1 << 31  # bytes: no rank has so much to say


def gather_texts(text: str | None, group: ProcessGroup) -> list[str | None]:
    """Every rank's text, by rank; None where a rank has none. group: one that takes tensors of the host."""
    import torch
    import torch.distributed as dist

    data = b"" if text is None else text.encode(errors="surrogateescape")
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(lengths, torch.tensor([-1 if text is None else len(data)]), group=group)
    sizes = [int(length) for length in lengths]
    if max(sizes) > LONGEST_TEXT:
        raise RuntimeError(f"a rank announced a text of {max(sizes)} bytes: it is none of this program")
    buffers = [torch.zeros(max(1, *sizes), dtype=torch.uint8) for _ in sizes]
    own = torch.frombuffer(bytearray(data.ljust(len(buffers[0]), b"\0")), dtype=torch.uint8)
    dist.all_gather(buffers, own, group=group)
    return [
        None if size < 0 else buffer[:size].numpy().tobytes().decode(errors="surrogateescape")
        for size, buffer in zip(sizes, buffers, strict=True)
    ]
