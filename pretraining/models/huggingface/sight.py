"""What tokens of a class of transformers see: a decoder's must not see those after them, an encoder's must.

A class's name does not tell: BertLMHeadModel is a decoder where its config says so, and sees everything elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pretraining.models.huggingface.architectures import facts_of
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.network import reading
from pretraining.models.huggingface.settings import PROBE, SHAPES, filled_config, keys_of, model_class
from pretraining.models.roles import Role

LAYERS, TOKENS = 2, 12  # enough for a leak: what one layer does not hide, no other does


def sight_problems(config: HuggingFaceConfig) -> list[str]:
    """With random weights: the last token is changed, and the features of those before it are looked at."""
    role = facts_of(config.architecture).role
    if role is Role.IMAGE_ENCODER:
        return []
    first, second = _features(config)
    unmoved = torch.equal(first[:, :-1], second[:, :-1])
    if role is Role.TOKEN_ENCODER and unmoved:
        return [f"model.architecture={config.architecture} with these settings does not see later tokens"]
    if role is not Role.TOKEN_ENCODER and not unmoved:
        return [
            f"model.architecture={config.architecture} with these settings sees the tokens that it is to predict; "
            "some classes are decoders only with +model.settings.is_decoder=true"
        ]
    return []


@torch.no_grad()
def _features(config: HuggingFaceConfig) -> tuple[Tensor, Tensor]:
    """Of a row of tokens, and of the same with another last token: [1, tokens, features] each."""
    has_layers = any(name in keys_of(config) for name in SHAPES["num_layers"])
    small = replace(config, num_layers=LAYERS) if has_layers else config
    with torch.random.fork_rng(devices=[]):
        network = model_class(config.architecture)(filled_config(small, PROBE)).eval()
    row = torch.arange(100, 100 + TOKENS)[None]
    changed = row.clone()
    changed[0, -1] += 100
    read: list[Tensor] = []
    with reading(network.get_output_embeddings(), read):
        for tokens in (row, changed):
            if facts_of(config.architecture).role is Role.ENCODER_DECODER:
                network(input_ids=row, decoder_input_ids=tokens)
            else:
                network(input_ids=tokens)
    return read[0], read[1]
