"""A class of transformers, built empty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.settings import filled_config, model_class
from pretraining.models.vocabulary import Vocabulary


def empty_network(
    config: HuggingFaceConfig, vocabulary: Vocabulary, device: torch.device, attention: str | None = None
) -> PreTrainedModel:
    """attention: which implementation of it; None takes torch's scaled_dot_product_attention where the class has it."""
    filled, found = filled_config(config, vocabulary), model_class(config.architecture)
    filled._attn_implementation = attention or ("sdpa" if found._supports_sdpa else "eager")
    with no_init_weights(), device:
        network = found(filled)
    network.tie_weights()  # which belongs to the initialization that was left out
    if config.activation_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return network


@contextmanager
def reading(projection: nn.Module, read: list[Tensor]) -> Iterator[None]:
    """Within it, what `projection` would read is appended to `read`; it is given none of it, and computes nothing."""

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(inputs[0])
        return (inputs[0][:0], *inputs[1:])

    hook = projection.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
