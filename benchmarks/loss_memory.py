"""Peak memory of the loss over a vocabulary of 50k at 8k tokens, ours and the plain way: `python -m
benchmarks.loss_memory`. Each in a process of its own; forward and backward; beyond what inputs and weights take."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.models.heads import TokenHead
from pretraining.parallel.layers import PlainLayers

VOCABULARY, TOKENS, HIDDEN = 50304, 8192, 768


def ours(hidden: Tensor, weight: nn.Parameter, labels: Tensor) -> Tensor:
    return TokenHead(PlainLayers(), VOCABULARY, weight)(hidden, labels)


def plain(hidden: Tensor, weight: nn.Parameter, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(function: Callable[[Tensor, nn.Parameter, Tensor], Tensor], queue: Queue[tuple[float, int]]) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(VOCABULARY, HIDDEN) * 0.02)
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    before = peak_bytes()
    loss = function(hidden, weight, labels)
    loss.backward()
    queue.put((loss.item(), peak_bytes() - before))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    found = {}
    for function in (ours, plain):
        queue = context.Queue()
        process = context.Process(target=measure, args=(function, queue))
        process.start()
        found[function.__name__] = queue.get()
        process.join()
    for name, (loss, peak) in found.items():
        print(f"{name}: loss {loss:.2f}, peak {peak / 2**20:,.0f} MiB")
    print(
        f"difference of the losses, relative: {abs(found['ours'][0] / found['plain'][0] - 1):.1e}; "
        f"peak ours / plain: {found['ours'][1] / found['plain'][1]:.2f}"
    )


if __name__ == "__main__":
    main()
