"""What an encoder-decoder writes by itself."""

from __future__ import annotations

from pretraining.objectives.models import EncoderDecoderWithHead


def greedy(
    model: EncoderDecoderWithHead, inputs: list[int], start: int, stop: int, length: int, sentinels: set[int]
) -> list[int]:
    """The likeliest token at each step, up to `stop`, which is left out, or `length` tokens. No span is empty: neither
    another sentinel nor the end may follow one of the `sentinels`."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    read, written, ends = torch.tensor([inputs], device=device), [start], [stop, *sentinels]
    with torch.no_grad():
        while len(written) <= length:
            hidden = model(read, torch.tensor([written], device=device))
            logits = model.head.logits(hidden[0, -1])
            if written[-1] in sentinels:
                logits[ends] = -torch.inf
            choice = int(logits.argmax())
            if choice == stop:
                break
            written.append(choice)
    return written[1:]
