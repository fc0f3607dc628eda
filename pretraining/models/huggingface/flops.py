"""FLOPs of a class of transformers, counted by torch on tensors without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pretraining.models.huggingface.architectures import facts_of
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.network import empty_network, reading
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary

MASKED_SHARE = 0.15  # of an encoder's tokens pass the projection to the vocabulary: Devlin et al. 2018, section 3.1
META = torch.device("meta")


def forward_flops_per_token(config: HuggingFaceConfig, vocabulary: Vocabulary, length: int) -> float:
    """Of one token in sequences of `length` tokens, the projection to the vocabulary without padding included; of an
    encoder and decoder, each of which has `length` tokens, the mean.

    Attention is counted as matrix products over all pairs of tokens, as in Chowdhery et al. 2022, "PaLM", appendix B.
    """
    facts = facts_of(config.architecture)
    role = facts.role
    tokens = {"input_ids": torch.zeros(1, length, dtype=torch.long, device=META)}
    if role is Role.ENCODER_DECODER:
        tokens["decoder_input_ids"] = tokens["input_ids"]
    # with a mask that is there already the class does not look for padding among tokens that have no values
    mask = torch.zeros(1, 1, 1, length, device=META)
    masks = {name.replace("input_ids", "attention_mask"): mask for name in tokens} if facts.masks else {}
    network = empty_network(config, vocabulary, META, "eager")
    read: list[Tensor] = []
    with reading(network.get_output_embeddings(), read):
        counted = _count(network, tokens | masks)
    (features,) = read
    share = MASKED_SHARE if role is Role.TOKEN_ENCODER else 1.0
    counted += share * length * 2 * vocabulary.size * features.shape[-1]
    return counted / (length * len(tokens))


def forward_flops_per_image(config: HuggingFaceConfig, vocabulary: Vocabulary) -> float:
    """Of one image, the head included."""
    images = torch.zeros(1, 3, config.image_size, config.image_size, device=META)
    return _count(empty_network(config, vocabulary, META, "eager"), {"pixel_values": images})


def _count(network: nn.Module, arguments: dict[str, Any]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(**arguments)
    return float(counter.get_total_flops())
