"""Denoising for encoder-decoders: T5's span corruption, prefix language modeling, UL2's mixture of denoisers.

Raffel et al. 2019, "Exploring the Limits of Transfer Learning", sections 3.1.4 and 3.2; Tay et al. 2022, "UL2:
Unifying Language Learning Paradigms", section 3.1. Each document of a sequence is corrupted by itself, with sentinels
from the first one on, and kept apart by masks, as seqio packs T5's examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Positive, configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Segment
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.objectives.samples import Demonstration
from pretraining.objectives.sequence.noise import Denoiser, Prefix, Spans, solve_lengths
from pretraining.objectives.text.causal_lm import IGNORED, pad_to

if TYPE_CHECKING:
    from torch import nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers

SHORTEST_CUT = 8  # tokens: rather than cut a document to fewer, a sequence ends
UL2_MODES = 3  # the last sentinels stand for UL2's mode tokens [R], [X] and [S]
READABLE = 3  # samples that a demonstration shows


@configclass
class SpanCorruptionConfig:
    """mode: span is T5's; prefix_lm splits each piece in two; ul2 mixes seven denoisers and prefixes a mode token.
    What prefix_lm and ul2 make of a piece is not known when it is cut: there is room for the most, padding behind it.

    noise_density, mean_span_length (tokens): of mode=span; towards a density of 1, a piece that fills the encoder would
    grow without end. targets_length: the most that the decoder writes (null: what the noise makes of a full input).
    """

    name: Literal["span_corruption"]
    mode: Literal["span", "prefix_lm", "ul2"] = "span"
    noise_density: Annotated[float, Field(gt=0.0, le=0.9)] = 0.15
    mean_span_length: Annotated[float, Field(ge=1.0)] = 3.0
    targets_length: Positive | None = None

    def build(self, tokenizer: Tokenizer, max_seq_len: int) -> SpanCorruption:
        return SpanCorruption(self, tokenizer, max_seq_len)


@dataclass(frozen=True)
class ModeDenoiser:
    """A denoiser of the mixture; its mode, counted from the last sentinel, is the first token of the inputs."""

    denoiser: Denoiser
    mode: int | None = None

    def lengths(self, n: int) -> tuple[int, int]:
        """With the end marks and the mode."""
        inputs, targets = self.denoiser.lengths(n)
        return inputs + 1 + (self.mode is not None), targets + 1


def mixture(config: SpanCorruptionConfig) -> list[ModeDenoiser]:
    """Chosen from with equal probability. UL2: table 1 of the paper; S writes a quarter of the tokens on average."""
    if config.mode == "span":
        return [ModeDenoiser(Spans(config.noise_density, config.mean_span_length))]
    if config.mode == "prefix_lm":
        return [ModeDenoiser(Prefix(1.0))]
    regular, sequential, extreme = (3, 1, 2)
    return [
        ModeDenoiser(Spans(0.15, 3.0), regular),
        ModeDenoiser(Spans(0.15, 8.0), regular),
        ModeDenoiser(Prefix(0.5), sequential),
        ModeDenoiser(Spans(0.5, 3.0), extreme),
        ModeDenoiser(Spans(0.5, 8.0), extreme),
        ModeDenoiser(Spans(0.15, 64.0), extreme),
        ModeDenoiser(Spans(0.5, 64.0), extreme),
    ]


@dataclass(frozen=True)
class BudgetPacking:
    """A Packing: pieces of documents, as many as surely fit the encoder and the decoder once they are corrupted.

    inputs, targets: int [tokens + 1], the most that a piece of so many tokens makes of each; neither falls.
    """

    inputs: np.ndarray
    targets: np.ndarray
    inputs_length: int
    targets_length: int

    def plan(self, lengths: np.ndarray) -> BudgetPlan:
        """lengths: int [documents]. Documents and remainders of one token are left out."""
        plan: list[list[Segment]] = []
        current: list[Segment] = []
        rooms = (self.inputs_length, self.targets_length)
        for document, length in enumerate(lengths.tolist()):
            start = 0
            while length - start >= 2:
                fits = self._fits(rooms)
                if current and fits < min(length - start, SHORTEST_CUT):
                    plan.append(current)
                    rooms, current = (self.inputs_length, self.targets_length), []
                    continue
                stop = start + min(fits, length - start)
                current.append(Segment(document, start, stop))
                rooms = (rooms[0] - int(self.inputs[stop - start]), rooms[1] - int(self.targets[stop - start]))
                start = stop
        return BudgetPlan([*plan, current] if current else plan)

    def cut(self, document: Any, piece: Segment) -> np.ndarray:
        return document.tokens[piece.start : piece.stop]

    def _fits(self, rooms: tuple[int, int]) -> int:
        """The longest piece for so much room, in tokens."""
        both = (np.searchsorted(self.inputs, rooms[0], "right"), np.searchsorted(self.targets, rooms[1], "right"))
        return int(min(both)) - 1


class BudgetPlan:
    def __init__(self, sequences: list[list[Segment]]) -> None:
        self.sequences, self.num_sequences = sequences, len(sequences)

    def pieces(self, sequence: int) -> list[Segment]:
        return self.sequences[sequence]


class SpanCorruption:
    """A sample, each int64: inputs and input_documents [read], decoder_inputs, labels and target_documents [written].

    decoder_inputs are the labels shifted right within each document, beginning with pad (T5's start token).
    """

    terms = {"span_corruption": 1.0}

    def __init__(self, config: SpanCorruptionConfig, tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.config, self.inputs_length = config, max_seq_len
        self.pad, self.eos, self.all_sentinels = tokenizer.pad, tokenizer.eos, tokenizer.sentinels
        self.mixture = mixture(config)
        reserved = UL2_MODES if config.mode == "ul2" else 0
        self.sentinels = self.all_sentinels[: len(self.all_sentinels) - reserved]
        self.longest, solved = solve_lengths(self._most, max_seq_len)
        self.targets_length = config.targets_length or solved
        self._check(max_seq_len)

    def for_evaluation(self) -> SpanCorruption:
        return self

    def packing(self) -> BudgetPacking:
        most = np.array([(1, 1), (1, 1), *(self._most(n) for n in range(2, self.longest + 1))])
        assert (np.diff(most, axis=0) >= 0).all()
        return BudgetPacking(most[:, 0], most[:, 1], self.inputs_length, self.targets_length)

    def corrupt(self, pieces: list[np.ndarray], rng: np.random.Generator) -> Sample:
        parts = [self._corrupt_piece(piece.astype(np.int64), rng) for piece in pieces]
        inputs, labels = [a for a, _ in parts], [b for _, b in parts]
        shifted = [np.concatenate([[self.pad], b[:-1]]) for b in labels]
        return {
            "inputs": np.concatenate(inputs),
            "input_documents": _numbered(inputs),
            "decoder_inputs": np.concatenate(shifted),
            "labels": np.concatenate(labels),
            "target_documents": _numbered(labels),
        }

    def collate(self, samples: list[Sample]) -> Sample:
        fill = {
            "inputs": self.pad,
            "input_documents": -1,
            "decoder_inputs": self.pad,
            "labels": IGNORED,
            "target_documents": -1,
        }
        lengths = {name: self.inputs_length if name.startswith("input") else self.targets_length for name in fill}
        return {name: pad_to(lengths[name], [s[name] for s in samples], fill[name]) for name in fill}

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        return {"span_corruption": sum(len(s["labels"]) for s in samples)}

    def tokens(self, sample: Sample) -> int:
        return len(sample["inputs"]) + len(sample["labels"])

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        from pretraining.models.heads import token_head

        return {"head": token_head(model, layers)}

    def loss(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """-> {term: sum over the batch}, fp32 scalars with a gradient."""
        return {"span_corruption": model.head(_hidden(model, batch), batch["labels"])}

    def describe(self, sample: Sample, tokenizer: Tokenizer) -> str:
        """What the encoder reads and the decoder writes, document by document."""
        lines = []
        for document in range(int(sample["input_documents"].max()) + 1):
            for name, ids in (("inputs", "input_documents"), ("labels", "target_documents")):
                text = self.decode_with_specials(sample[name][sample[ids] == document].tolist(), tokenizer)
                lines.append(f"{'targets' if name == 'labels' else name}: {text}")
        return "\n".join(lines)

    def demonstrate(self, model: Any, context: Demonstration) -> str:
        """Validation text with spans taken out, what stood there, and what the model writes for them."""
        assert context.tokenizer is not None
        shown = [self._filled(model, sample, context.tokenizer) for sample in context.samples[:READABLE]]
        right = self._right(model, context.samples)
        score = (
            f"of {len(right)} tokens of the spans of {len(context.samples)} samples, the likeliest one after "
            f"those that stood before it is right for {right.mean():.1%}"
        )
        return "\n\n".join([*shown, score])

    def _filled(self, model: Any, sample: Sample, tokenizer: Tokenizer) -> str:
        """The first document of a sample."""
        inputs, labels = (
            sample[name][sample[documents] == 0].tolist()
            for name, documents in (("inputs", "input_documents"), ("labels", "target_documents"))
        )
        written = greedy(model, inputs, self.pad, self.eos, self.targets_length, set(self.all_sentinels))
        truth, guess = self._spans(labels, tokenizer), self._spans(written, tokenizer)
        lines = [f"  {name}: {text!r}, written {guess.get(name, '')!r}" for name, text in truth.items()]
        return "\n".join([f"inputs: {self.decode_with_specials(inputs, tokenizer)}", *lines])

    def _right(self, model: Any, samples: list[Sample]) -> np.ndarray:
        """-> bool [tokens of all spans], whether the likeliest token after the true ones is the true one."""
        import torch

        device = next(model.parameters()).device
        batch = {name: torch.from_numpy(array).to(device) for name, array in self.collate(samples).items()}
        model.eval()
        with torch.no_grad():
            best = model.head.logits(_hidden(model, batch)).argmax(-1).cpu().numpy()
        labels = batch["labels"].cpu().numpy()
        in_span = ~np.isin(labels, [IGNORED, self.eos, *self.all_sentinels])
        return (best == labels)[in_span]

    def _spans(self, ids: list[int], tokenizer: Tokenizer) -> dict[str, str]:
        """-> {"<extra_id_0>": the text after it, ...}."""
        spans: dict[str, list[int]] = {}
        numbers = {token: n for n, token in enumerate(self.all_sentinels)}
        name = ""
        for token in ids:
            if token in numbers:
                name = f"<extra_id_{numbers[token]}>"
                spans[name] = []
            elif token != self.eos:
                spans.setdefault(name, []).append(token)
        return {name: tokenizer.decode(tokens) for name, tokens in spans.items()}

    def decode_with_specials(self, ids: list[int], tokenizer: Tokenizer) -> str:
        """Text, with <extra_id_n> for sentinels and </s> at an end."""
        names = {token: f"<extra_id_{n}>" for n, token in enumerate(self.all_sentinels)} | {self.eos: "</s>"}
        runs = groupby(ids, key=names.get)
        return "".join(name * len(list(run)) if name else tokenizer.decode(list(run)) for name, run in runs)

    def _most(self, n: int) -> tuple[int, int]:
        """What a piece of n tokens makes at most of (inputs, targets), whichever denoiser is drawn."""
        inputs, targets = zip(*(m.lengths(n) for m in self.mixture), strict=True)
        return max(inputs), max(targets)

    def _corrupt_piece(self, tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """-> (inputs, labels), with their end marks."""
        chosen = self.mixture[int(rng.integers(len(self.mixture)))]
        parts = chosen.denoiser.corrupt(tokens, self.sentinels, rng)
        mode = [] if chosen.mode is None else [self.all_sentinels[-chosen.mode]]
        return np.array([*mode, *parts.inputs, self.eos]), np.array([*parts.targets, self.eos])

    def _check(self, max_seq_len: int) -> None:
        """Raises InputError where the lengths leave no room for a piece, or sentinels run out."""
        needed = max(m.denoiser.sentinels(self.longest) for m in self.mixture)
        if needed > len(self.sentinels):
            longer = " or a larger objective.mean_span_length" if self.config.mode == "span" else ""
            raise InputError(
                f"objective.mode={self.config.mode} with data.seq_len={max_seq_len} needs {needed} "
                f"sentinels, there are {len(self.sentinels)}: a smaller data.seq_len{longer} needs fewer"
            )
        fits = self.packing()._fits((self.inputs_length, self.targets_length))
        if fits < SHORTEST_CUT:
            raise InputError(
                f"data.seq_len={max_seq_len} with objective.targets_length={self.targets_length} hold no "
                f"more than {fits} tokens of a document: at least {SHORTEST_CUT} are needed"
            )


def _hidden(model: Any, batch: dict[str, Any]) -> Any:
    """-> [batch, written, hidden_size]."""
    return model(batch["inputs"], batch["decoder_inputs"], batch["input_documents"], batch["target_documents"])


def greedy(model: Any, inputs: list[int], start: int, stop: int, length: int, marks: set[int]) -> list[int]:
    """The likeliest token at each step, up to `stop` or `length` tokens. No span is empty: behind one of the `marks`
    that begin them neither another nor the end is allowed."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    read, written, ends = torch.tensor([inputs], device=device), [start], [stop, *marks]
    with torch.no_grad():
        while len(written) <= length:
            hidden = model(read, torch.tensor([written], device=device))
            logits = model.head.logits(hidden[0, -1])
            if written[-1] in marks:
                logits[ends] = -torch.inf
            choice = int(logits.argmax())
            if choice == stop:
                break
            written.append(choice)
    return written[1:]


def _numbered(parts: list[np.ndarray]) -> np.ndarray:
    """-> int64 [sum of lengths], which part each element belongs to."""
    return np.repeat(np.arange(len(parts)), [len(p) for p in parts])
