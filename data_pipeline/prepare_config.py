"""Everything that `pretrain-data` takes."""

from __future__ import annotations

from typing import Annotated

import pydantic

from data_pipeline.common.fields import Fraction, NonNegative, Positive, configclass
from data_pipeline.sources.images import ImagesConfig
from data_pipeline.sources.text import TextConfig
from data_pipeline.tokenizers.tokenizer import TokenizerConfig


@configclass
class PrepareConfig:
    """corpus: which files are read. tokenizer: of text alone. output: the folder to write.

    valid_fraction: of the documents (or images), by their hash under `seed`; at least one. num_workers: processes; what
    is written does not depend on it. block_tokens: of text, what is shuffled as one. shard_bytes: at which a shard is
    closed.
    """

    corpus: Annotated[TextConfig | ImagesConfig, pydantic.Field(discriminator="kind")]
    tokenizer: TokenizerConfig
    output: str
    valid_fraction: Fraction
    num_workers: NonNegative
    seed: NonNegative
    block_tokens: Positive
    shard_bytes: Positive
