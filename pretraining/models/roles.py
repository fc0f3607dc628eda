"""What models can do and objectives need: an objective fits a model that plays its role."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    DECODER = "decoder"  # a token sees those before it
    TOKEN_ENCODER = "token encoder"  # a token sees all of its document
    ENCODER_DECODER = "encoder-decoder"  # reads one sequence, writes another
    IMAGE_ENCODER = "image encoder"  # sees all patches of an image
    MASKED_IMAGE_AUTOENCODER = "masked image autoencoder"  # some patches in, the pixels of all out
    GENERATOR_DISCRIMINATOR = "generator and discriminator"  # one fills masks, the other finds what was filled in
    RECURRENT_DECODER = "recurrent decoder"  # a decoder that reads segment by segment and remembers those before
    PERMUTED_ENCODER = "permuted encoder"  # tokens see each other in an order that comes with the sample
    BIDIRECTIONAL_DECODER = "bidirectional decoder"  # a decoder in each direction, over characters
