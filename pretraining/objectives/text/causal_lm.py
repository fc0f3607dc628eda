"""Causal language modeling: predict each token of a document from those before it (Radford et al. 2019, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_pipeline.common.fields import Probability, configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Concatenation
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.samples import Demonstration

if TYPE_CHECKING:
    from torch import nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers

IGNORED = -100
SHOWN = 8  # predictions that `describe` tells of each document


@configclass
class CausalLMConfig:
    """cross_document_attention: let a token look at earlier documents of its sequence, positions running on.
    fim_rate: share of the documents' pieces that are rearranged so that their middle comes last (see fill_middle)."""

    name: Literal["causal_lm"]
    cross_document_attention: bool = False
    fim_rate: Probability = 0.0

    def build(self, tokenizer: Tokenizer, max_seq_len: int) -> CausalLM:
        return CausalLM(self, tokenizer, max_seq_len)


class CausalLM:
    """A sample: tokens, labels, positions, documents, each int64 [length]; labels are IGNORED at a document's end."""

    terms = {"causal_lm": 1.0}

    def __init__(self, config: CausalLMConfig, tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.config, self.length = config, max_seq_len
        self.pad, self.bos, self.eos = tokenizer.pad, tokenizer.bos, tokenizer.eos
        self.fim = (tokenizer.fim_prefix, tokenizer.fim_suffix, tokenizer.fim_middle)

    def for_evaluation(self) -> CausalLM:
        return self

    def packing(self) -> Concatenation:
        return Concatenation(self.length + 1, self.length, before=(self.bos,), after=(self.eos,))

    def corrupt(self, pieces: list[np.ndarray], rng: np.random.Generator) -> Sample:
        if self.config.fim_rate:
            pieces = [self._rearranged(piece, rng) for piece in pieces]
        tokens = np.concatenate(pieces).astype(np.int64)
        lengths = [len(p) for p in pieces]
        documents = np.repeat(np.arange(len(pieces)), lengths)
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

    def _rearranged(self, piece: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A document's bos and eos keep their places."""
        if rng.random() >= self.config.fim_rate:
            return piece
        first, last = int(piece[0] == self.bos), len(piece) - int(piece[-1] == self.eos)
        body = fill_middle(piece[first:last].astype(np.int64), self.fim, rng)
        return np.concatenate([piece[:first], body, piece[last:]])

    def collate(self, samples: list[Sample]) -> Sample:
        fill = {"tokens": self.pad, "labels": IGNORED, "positions": 0, "documents": -1}
        return {name: pad_to(self.length, [s[name] for s in samples], fill[name]) for name in samples[0]}

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        return {"causal_lm": sum(int((s["labels"] != IGNORED).sum()) for s in samples)}

    def tokens(self, sample: Sample) -> int:
        return len(sample["tokens"])

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        from pretraining.models.heads import token_head

        return {"head": token_head(model, layers)}

    def loss(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """-> {term: sum over the batch}, fp32 scalars with a gradient."""
        hidden = model(batch["tokens"], batch["positions"], batch.get("documents"))
        return {"causal_lm": model.head(hidden, batch["labels"])}

    def demonstrate(self, model: Any, context: Demonstration) -> str:
        """Text that the model writes by itself."""
        assert context.tokenizer is not None
        return context.tokenizer.decode(generate(model, [self.bos], self.length, self.eos, context.seed))

    def describe(self, sample: Sample, tokenizer: Tokenizer) -> str:
        """One sample as text: its documents, and for each of their first tokens the one that it predicts."""
        documents = sample.get("documents", np.zeros_like(sample["tokens"]))
        parts = []
        for document in np.unique(documents):
            tokens, labels = (sample[name][documents == document] for name in ("tokens", "labels"))
            steps = [
                f"{decode_with_specials(tokenizer, [t])!r} -> {decode_with_specials(tokenizer, [n])!r}"
                for t, n in zip(tokens[:SHOWN], labels, strict=False)
                if n != IGNORED
            ]
            parts.append(
                f"--- document {document}, {len(tokens)} tokens\n{decode_with_specials(tokenizer, tokens)}\n"
                f"--- predicts {', '.join(steps)}"
            )
        return "\n".join(parts)


def fill_middle(tokens: np.ndarray, ids: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """prefix + middle + suffix -> <prefix> prefix <suffix> suffix <middle> middle, int [length] again.

    ids: those of the three marks, in that order (PSM; Bavarian et al. 2022, "Efficient Training of Language Models to
    Fill in the Middle", section 3). Both borders are uniform, between tokens. The suffix gives up three tokens for
    the marks; a piece whose suffix is too short for that stays as it is (bigcode's Megatron-LM, gpt_dataset.py,
    permute with truncate_or_pad).
    """
    first, second = sorted(rng.integers(0, len(tokens) + 1, 2).tolist())
    prefix, middle, suffix = tokens[:first], tokens[first:second], tokens[second:]
    if len(suffix) <= len(ids):
        return tokens
    parts = zip(ids, (prefix, suffix[: -len(ids)], middle), strict=True)
    return np.concatenate([np.concatenate([[mark], part]) for mark, part in parts])


def pad_to(length: int, rows: list[np.ndarray], fill: int) -> np.ndarray:
    """-> [rows, length], `fill` behind each row."""
    out = np.full((len(rows), length), fill, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def generate(
    model: Any, prompt: list[int], length: int, stop: int, seed: int, temperature: float = 0.8, top_k: int = 50
) -> list[int]:
    """Samples a continuation of `prompt` until `stop` or `length` tokens (Fan et al. 2018: top-k sampling)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    model.eval()
    with torch.no_grad():
        while len(tokens) < length:
            logits = model.head.logits(model(torch.tensor([tokens]))[0, -1]).float() / temperature
            values, indices = logits.topk(min(top_k, logits.numel()))
            choice = int(indices[torch.multinomial(values.softmax(-1), 1, generator=generator)])
            if choice == stop:
                break
            tokens.append(choice)
    return tokens
