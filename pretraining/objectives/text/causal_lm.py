"""Causal language modeling: predict each token of a document from those before it (Radford et al. 2019, section 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from data_pipeline.common.fields import NonNegativeFloat, Probability, configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Concatenation, Pieces
from pretraining.labels import IGNORED
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import DecoderWithHead
from pretraining.objectives.padding import pad_to
from pretraining.objectives.text.rolling_windows import RollingWindows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers

SHOWN_PREDICTIONS = 8  # of each document in a description


@configclass
class CausalLMConfig:
    """Predict each token of a document from those before it.

    cross_document_attention: a token also sees earlier documents of its sequence, and positions run on, in an
        evaluation too.
    fim_rate: share of the segments that are rearranged so that their middle comes last (see fill_middle).
    z_loss: weight of the squared logarithm of the softmax's denominator, which the training loss then holds; T5 was
        trained with 1e-4.
    """

    name: Literal["causal_lm"]
    cross_document_attention: bool = False
    fim_rate: Probability = 0.0
    z_loss: NonNegativeFloat = 0.0


class CausalLM(Objective[np.ndarray, DecoderWithHead]):
    """A sample: tokens, labels, positions, documents, each int64 [length]; labels are IGNORED at a document's end.
    With cross_document_attention it has no documents.

    An evaluation reads each document from its beginning (RollingWindows), unrearranged: its loss does not depend on
    how documents fall into sequences, and is that of other tools. With cross_document_attention it reads what training
    reads.
    """

    terms = {"causal_lm": 1.0}
    unit = Unit.TOKENS
    text_term = "causal_lm"

    def __init__(self, config: CausalLMConfig, spec: SampleSpec) -> None:
        assert spec.tokenizer is not None
        self.config, self.length, self.tokenizer = config, spec.seq_len, spec.tokenizer
        self.packs = spec.packs_documents or config.cross_document_attention
        self.rearranges, self.rolls = config.fim_rate > 0, False
        self.pad, self.bos, self.eos = self.tokenizer.pad, self.tokenizer.bos, self.tokenizer.eos
        self.fim = (self.tokenizer.fim_prefix, self.tokenizer.fim_suffix, self.tokenizer.fim_middle)

    def for_evaluation(self) -> Self:
        evaluation = copy.copy(self)
        evaluation.rearranges, evaluation.rolls = False, not self.config.cross_document_attention
        return evaluation

    def packing(self) -> Concatenation | Pieces | RollingWindows:
        if self.rolls:
            return RollingWindows(self.length, self.bos, self.eos, together=self.packs)
        if not self.packs:
            return Pieces(self.length + 1, self.length, before=(self.bos,), after=(self.eos,))
        # Neighboring sequences share a token: the last label of one is the first token of the next
        return Concatenation(self.length + 1, self.length, before=(self.bos,), after=(self.eos,))

    def corrupt(self, segments: Sequence[np.ndarray], rng: np.random.Generator) -> Sample:
        if self.rolls:
            return _windows(segments)
        if self.rearranges:
            segments = [self._rearranged(segment, rng) for segment in segments]
        tokens = np.concatenate(segments).astype(np.int64)
        lengths = [len(segment) for segment in segments]
        documents = np.repeat(np.arange(len(segments)), lengths)
        same = documents[:-1] == documents[1:]
        sample = {
            "tokens": tokens[:-1],
            "labels": np.where(same, tokens[1:], IGNORED),
            "positions": np.concatenate([np.arange(n) for n in lengths])[:-1],
            "documents": documents[:-1],
        }
        if self.config.cross_document_attention:
            sample["positions"] = np.arange(len(tokens) - 1)
            del sample["documents"]
        return sample

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> the sample's arrays, int64 [batch, seq_len]. Padding is of document -1."""
        fill = {"tokens": self.pad, "labels": IGNORED, "positions": 0, "documents": -1}
        return {name: pad_to(self.length, [s[name] for s in samples], fill[name]) for name in samples[0]}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return {"causal_lm": sum(int((s["labels"] != IGNORED).sum()) for s in samples)}

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return sum(int(self.tokenizer.text_bytes[s["labels"][s["labels"] != IGNORED]].sum()) for s in samples)

    def size(self, sample: Sample) -> int:
        return len(sample["tokens"])

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        return {"head": model.make_token_head(layers, self.used_ids(), self.config.z_loss)}

    def used_ids(self) -> npt.NDArray[np.int64]:
        fim = ("fim_prefix", "fim_middle", "fim_suffix") if self.config.fim_rate else ()
        return self.tokenizer.used_ids(("bos", "eos", *fim))

    def loss(self, model: DecoderWithHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = model(batch["tokens"], batch["positions"], batch.get("documents"))
        return {"causal_lm": model.head(hidden, batch["labels"])}

    def flops_per_unit(self, model: DecoderWithHead) -> float:
        return model.flops_per_token(self.length)

    def describe(self, sample: Sample) -> str:
        """Its documents, and for the first tokens of each the token that they predict."""
        documents = sample.get("documents", np.zeros_like(sample["tokens"]))
        parts = []
        for document in np.unique(documents):
            tokens, labels = (sample[name][documents == document] for name in ("tokens", "labels"))
            steps = [
                f"{self._text([t])!r} -> {self._text([n])!r}"
                for t, n in zip(tokens[:SHOWN_PREDICTIONS], labels, strict=False)
                if n != IGNORED
            ]
            parts.append(
                f"--- document {document}, {len(tokens)} tokens\n{self._text(tokens)}\n--- predicts {', '.join(steps)}"
            )
        return "\n".join(parts)

    def demonstrate(self, model: DecoderWithHead, demonstration: Demonstration) -> str:
        """Text that the model writes by itself."""
        length = demonstration.bounded(self.length)
        return self.tokenizer.decode(generate(model, [self.bos], length, self.eos, demonstration.seed))

    def _rearranged(self, segment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A document's bos and eos keep their places."""
        if rng.random() >= self.config.fim_rate:
            return segment
        first = int(segment[0] == self.bos)
        # A published tokenizer's bos may be its eos: where a segment is this one token, it is not kept twice
        last = max(first, len(segment) - int(segment[-1] == self.eos))
        body = fill_middle(segment[first:last].astype(np.int64), self.fim, rng)
        return np.concatenate([segment[:first], body, segment[last:]])

    def _text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)


def _windows(windows: Sequence[np.ndarray]) -> Sample:
    """windows: int64 [2, tokens] each, see RollingWindows.cut."""
    inputs = [tokens[:-1] for tokens, _ in windows]
    return {
        "tokens": np.concatenate(inputs),
        "labels": np.concatenate([np.where(counts[1:], tokens[1:], IGNORED) for tokens, counts in windows]),
        "positions": np.concatenate([np.arange(len(tokens)) for tokens in inputs]),
        "documents": np.concatenate([np.full(len(tokens), number) for number, tokens in enumerate(inputs)]),
    }


def fill_middle(tokens: np.ndarray, ids: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """prefix + middle + suffix -> <prefix> prefix <suffix> suffix <middle> middle, int [length] again.

    ids: of the three marks, in that order (PSM; Bavarian et al. 2022, "Efficient Training of Language Models to Fill
    in the Middle", section 3). Both borders are uniform, between tokens. The suffix loses its last three tokens to the
    marks, so that the length stays; a segment whose suffix is too short for that is returned unchanged (bigcode's
    Megatron-LM, gpt_dataset.py, permute with truncate_or_pad).
    """
    first, second = sorted(rng.integers(0, len(tokens) + 1, 2).tolist())
    prefix, middle, suffix = tokens[:first], tokens[first:second], tokens[second:]
    if len(suffix) <= len(ids):
        return tokens
    parts = zip(ids, (prefix, suffix[: -len(ids)], middle), strict=True)
    return np.concatenate([np.concatenate([[mark], part]) for mark, part in parts])


def generate(
    model: DecoderWithHead,
    prompt: list[int],
    length: int,
    stop: int,
    seed: int,
    temperature: float = 0.8,
    top_k: int = 50,
) -> list[int]:
    """-> `prompt` and a sampled continuation, up to `length` tokens or the token `stop`, which is left out."""
    import torch

    device = next(model.parameters()).device
    model.eval()

    def next_token(tokens: list[int]) -> Tensor:
        return model.head.logits(model(torch.tensor([tokens], device=device))[0, -1])

    return continued(next_token, prompt, length, stop, seed, temperature, top_k)


def continued(
    next_token: Callable[[list[int]], Tensor],
    prompt: list[int],
    length: int,
    stop: int,
    seed: int,
    temperature: float = 0.8,
    top_k: int = 50,
) -> list[int]:
    """As generate; next_token: the tokens so far -> logits [vocabulary] of the next one (Fan et al. 2018, "Hierarchical
    Neural Story Generation": top-k sampling)."""
    import torch

    generator, tokens = torch.Generator().manual_seed(seed), list(prompt)
    with torch.no_grad():
        while len(tokens) < length:
            logits = next_token(tokens).float().cpu() / temperature
            values, indices = logits.topk(min(top_k, logits.numel()))
            if not values[0].isfinite():  # of a model that diverged no token is more likely than another
                break
            choice = int(indices[torch.multinomial(values.softmax(-1), 1, generator=generator)])
            if choice == stop:
                break
            tokens.append(choice)
    return tokens
