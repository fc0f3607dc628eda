"""What a model can do for an objective: which objective fits which model follows from the roles of both."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    DECODER = "decoder"  # tokens, each seeing those before it
    TOKEN_ENCODER = "token encoder"  # tokens, each seeing all of its document
    ENCODER_DECODER = "encoder-decoder"  # tokens read by the one, others written by the other
    IMAGE_ENCODER = "image encoder"  # the patches of an image
    MASKED_IMAGE_AUTOENCODER = "masked image autoencoder"  # some patches in, the pixels of all out
