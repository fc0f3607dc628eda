"""What the configs of all corpora have in common."""

from __future__ import annotations

from data_pipeline.common.fields import configclass


@configclass
class CorpusConfig:
    """Which raw files are read.

    kind: picks the corpus from sources/registry.py.
    """

    kind: str
