"""A class of transformers run on tensors without values: its FLOPs, and which parameters a gradient reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from data_pipeline.common.errors import InputError
from pretraining.models.huggingface.architectures import facts_of
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.network import empty_network, reading
from pretraining.models.huggingface.settings import PROBE
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary

MASKED_SHARE = 0.15  # of an encoder's tokens pass the projection to the vocabulary: Devlin et al. 2018, section 3.1
META = torch.device("meta")


def forward_flops_per_token(config: HuggingFaceConfig, vocabulary: Vocabulary, length: int) -> float:
    """Of one token in sequences of `length` tokens, the projection to the vocabulary without padding included; of an
    encoder and decoder, each of which has `length` tokens, the mean.

    Matrix products and convolutions, attention's as they are computed without a fused kernel: over all pairs of tokens,
    or those of its window (as in Chowdhery et al. 2022, "PaLM", appendix B). Raises InputError where that cannot be
    counted.
    """
    role = facts_of(config.architecture).role
    network = empty_network(config, vocabulary, META, "eager")
    arguments = _arguments(config, length)
    with _without_values(config), FlopCounterMode(display=False) as counter, torch.no_grad():
        features = _run(network.eval(), arguments)
    share = MASKED_SHARE if role is Role.TOKEN_ENCODER else 1.0
    counted = counter.get_total_flops() + share * length * 2 * vocabulary.size * features.shape[-1]
    return counted / (length * len(arguments))


def forward_flops_per_image(config: HuggingFaceConfig, vocabulary: Vocabulary) -> float:
    """Of one image, the head included. Raises InputError where that cannot be counted."""
    network = empty_network(config, vocabulary, META, "eager")
    with _without_values(config), FlopCounterMode(display=False) as counter, torch.no_grad():
        _run(network.eval(), _arguments(config, 0))
    return float(counter.get_total_flops())


def run_problems(config: HuggingFaceConfig) -> list[str]:
    """Why it does not train on its longest sequence, or on an image."""
    try:
        with _without_values(config):
            pair = {name: t.expand(2, *t.shape[1:]) for name, t in _arguments(config, config.max_seq_len).items()}
            _run(empty_network(config, PROBE, META).train(), pair)  # one image alone has no variance
    except InputError as error:
        return [str(error)]
    return []


def without_gradient(config: HuggingFaceConfig) -> list[str]:
    """The names of the parameters that the role's objective leaves without a gradient: found by a backward pass, since
    torch.autograd.grad does not see into functions that make gradients of their own. Raises InputError where the class
    cannot be run so."""
    network = empty_network(config, PROBE, META)
    with _without_values(config):
        features = _run(network.train(), _arguments(config, min(config.max_seq_len, 64)))
        features.sum().backward()
    head: set[Tensor] = set()  # which is ours, and trained
    if facts_of(config.architecture).role is not Role.IMAGE_ENCODER:
        head = set(network.get_output_embeddings().parameters())
    return [name for name, p in network.named_parameters() if p.grad is None and p.requires_grad and p not in head]


def _arguments(config: HuggingFaceConfig, length: int) -> dict[str, Tensor]:
    role = facts_of(config.architecture).role
    if role is Role.IMAGE_ENCODER:
        return {"pixel_values": torch.zeros(1, 3, config.image_size, config.image_size, device=META)}
    names = ("input_ids", "decoder_input_ids") if role is Role.ENCODER_DECODER else ("input_ids",)
    return {name: torch.zeros(1, length, dtype=torch.long, device=META) for name in names}


def _run(network: PreTrainedModel, arguments: dict[str, Tensor]) -> Tensor:
    """-> what the last projection would read, or an image's logits."""
    with _Answers():
        if "pixel_values" in arguments:
            logits: Tensor = network(**arguments).logits
            return logits
        read: list[Tensor] = []
        with reading(network.get_output_embeddings(), read):
            network(**arguments)
        return read[0]


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a class of transformers raises within becomes an InputError that begins with `what`: each class says in
    its own way what it does not take, from ImportError to IndexError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:300]})") from error


def _without_values(config: HuggingFaceConfig) -> AbstractContextManager[None]:
    return refusing(
        f"model.architecture={config.architecture} with these model.settings is not supported: it does not run on "
        "tensors without values, by which its FLOPs are counted"
    )


class _Answers(TorchDispatchMode):
    """Tensors without values answer every question about these, such as whether there is any padding, with no."""

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0
        return func(*args, **(kwargs or {}))
