"""What an encoder-decoder writes by itself. Nothing is kept between steps: each computes the whole row again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretraining.objectives.models import EncoderDecoderWithHead

if TYPE_CHECKING:
    from torch import Tensor


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


def length_penalty(length: int, alpha: float) -> float:
    """What the log-probability of a sequence of `length` tokens, its end among them, is divided by (Wu et al. 2016,
    "Google's Neural Machine Translation System", equation 14)."""
    return float(((5 + length) / 6) ** alpha)


def beam_search(
    model: EncoderDecoderWithHead,
    inputs: Sequence[Sequence[int]],
    start: int,
    stop: int,
    lengths: Sequence[int],
    beams: int = 4,
    alpha: float = 0.6,
) -> list[list[int]]:
    """For each of the inputs the sequence of highest penalized log-probability that `beams` beams find, without `stop`,
    of at most so many tokens; where none has ended by then, the likeliest one that has not. All are searched at once.

    Of every step's best `beams` continuations those that end are kept, the best `beams` of them over all steps, and the
    best `beams` that don't end go on, until none can become better (facebookresearch/fairseq, sequence_generator.py;
    tensorflow/tensor2tensor, utils/beam_search.py, keeps those that end of the best 2 x beams). One beam without a
    penalty is `greedy`.
    """
    import torch

    model.eval()
    with torch.no_grad():
        search = _Beams(model, inputs, start, stop, lengths, beams, alpha)
        while not search.is_done():
            search.step()
    return search.best()


class _Beams:
    """alive: fp32 [inputs, beams], the log-probability of each sequence that goes on, -inf where there is none.
    written: int [inputs, beams, tokens], beginning with `start`. places: of the inputs that are still searched, in
    these. ended: of each of all inputs (score, tokens), the best ones first."""

    def __init__(
        self,
        model: EncoderDecoderWithHead,
        inputs: Sequence[Sequence[int]],
        start: int,
        stop: int,
        lengths: Sequence[int],
        beams: int,
        alpha: float,
    ) -> None:
        import torch

        self.model, self.stop, self.lengths, self.beams, self.alpha = model, stop, lengths, beams, alpha
        device = next(model.parameters()).device
        self.read, self.documents = (t.to(device)[:, None].expand(-1, beams, -1) for t in _padded(inputs))
        self.written = torch.full((len(inputs), beams, 1), start, device=device)
        self.alive = torch.full((len(inputs), beams), -torch.inf, device=device)
        self.alive[:, 0] = 0.0  # the beams are equal at first: one of them is enough
        self.places = list(range(len(inputs)))
        self.ended: list[list[tuple[float, list[int]]]] = [[] for _ in inputs]

    def step(self) -> None:
        """One token more."""
        import torch

        rows = self.written.flatten(0, 1)
        hidden = self.model(self.read.flatten(0, 1), rows, self.documents.flatten(0, 1), torch.zeros_like(rows))
        following = self.model.head.logits(hidden[:, -1]).float().log_softmax(-1)
        total = (self.alive.flatten()[:, None] + following).view(len(self.places), -1)
        best, choices = total.topk(min(2 * self.beams, total.shape[1]))
        beam, token = choices // following.shape[1], choices % following.shape[1]
        written = torch.cat([_taken(self.written, beam), token[..., None]], 2)
        ends = token == self.stop
        self._keep(best[:, : self.beams], written, ends[:, : self.beams])
        self.alive, going = best.masked_fill(ends, -torch.inf).topk(self.beams)
        self.written = _taken(written, going)
        self._retire()

    def _keep(self, best: Tensor, written: Tensor, ends: Tensor) -> None:
        penalty = length_penalty(written.shape[2] - 1, self.alpha)
        for row, place in (ends & best.isfinite()).nonzero().tolist():
            ended = self.ended[self.places[row]]
            ended.append((float(best[row, place]) / penalty, written[row, place, 1:-1].tolist()))
            ended.sort(key=lambda found: -found[0])
            del ended[self.beams :]

    def _retire(self) -> None:
        """Inputs that can gain nothing any more, since their length is reached or all that ended is better than what
        goes on can become, are searched no further."""
        left = [row for row, place in enumerate(self.places) if not self._is_settled(row, place)]
        self.places = [self.places[row] for row in left]
        self.read, self.documents = self.read[left], self.documents[left]
        self.written, self.alive = self.written[left], self.alive[left]

    def _is_settled(self, row: int, place: int) -> bool:
        ended, length = self.ended[place], self.written.shape[2] - 1
        # a log-probability only falls, and the longest sequence is divided by most
        hope = float(self.alive[row, 0]) / length_penalty(self.lengths[place], self.alpha)
        if length < self.lengths[place]:
            return len(ended) == self.beams and ended[-1][0] >= hope
        if not ended:
            ended.append((hope, self.written[row, 0, 1:].tolist()))
        return True

    def is_done(self) -> bool:
        return not self.places

    def best(self) -> list[list[int]]:
        return [ended[0][1] for ended in self.ended]


def _padded(inputs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """-> the rows and their documents, int [inputs, longest]: 0, and -1 for padding."""
    import torch

    longest = max(map(len, inputs))
    rows, documents = torch.zeros(len(inputs), longest, dtype=torch.long), torch.full((len(inputs), longest), -1)
    for number, tokens in enumerate(inputs):
        rows[number, : len(tokens)] = torch.tensor(tokens)
        documents[number, : len(tokens)] = 0
    return rows, documents


def _taken(written: Tensor, beam: Tensor) -> Tensor:
    """written: [inputs, beams, tokens]; beam: [inputs, n] -> [inputs, n, tokens]."""
    return written.gather(1, beam[..., None].expand(-1, -1, written.shape[2]))
