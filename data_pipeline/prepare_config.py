"""Everything that `pretrain-data` takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from data_pipeline.common.fields import Fraction, NonNegative, PathText, PickedBy, Positive, configclass, unused_with
from data_pipeline.sources.config import CorpusConfig
from data_pipeline.tokenizers.tokenizer import TokenizerConfig


@configclass
class PrepareConfig:
    """Everything that `pretrain-data` takes.

    corpus: what is read.
    output: the folder to write; an unfinished one is continued.
    tokenizer: how text becomes tokens.
    valid_fraction: share of the documents or images that go to validation, by hash; at least one does.
    num_workers: processes that tokenize or decode; what is written does not depend on it.
    seed: of the hash that decides what goes to validation.
    block_tokens: tokens of a block, the unit that training shuffles.
    shard_bytes: approximate size of a shard.
    min_shards: how many shards each split has at least, where it has as many documents or images: so many workers
        of the webdataset library can share it.
    """

    corpus: Annotated[CorpusConfig, PickedBy("data_pipeline.sources.registry:CORPORA", key="kind")]
    output: PathText
    tokenizer: Annotated[TokenizerConfig, unused_with("corpus.kind", "images")] = Field(default_factory=TokenizerConfig)
    valid_fraction: Fraction = 0.01
    num_workers: NonNegative = 2
    seed: NonNegative = 1
    block_tokens: Annotated[Positive, unused_with("corpus.kind", "images")] = 65536
    shard_bytes: Positive = 67108864
    min_shards: Positive = 8
