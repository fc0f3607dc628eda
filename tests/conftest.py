"""One small prepared corpus for all tests: real text, the sources of a few modules of the Python library."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.helpers import prepare
from tests.images import prepare_images, write_digits

MODULES = (
    "argparse",
    "ast",
    "bdb",
    "calendar",
    "cgi",
    "configparser",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "difflib",
    "enum",
    "fractions",
    "ftplib",
    "functools",
    "heapq",
    "inspect",
    "ipaddress",
    "locale",
    "mailbox",
)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Libraries leave RANK and WORLD_SIZE behind (accelerate does): the next test's ranks would believe them."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pretrain-data wrote: small blocks and shards, so that a window has several of them."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    files = [str(stdlib / f"{m}.py") for m in MODULES if (stdlib / f"{m}.py").exists()]
    output = tmp_path_factory.mktemp("corpus") / "data"
    assert (
        prepare(
            f"corpus.inputs=[{','.join(files)}]",
            f"output={output}",
            "tokenizer.vocab_size=512",
            "valid_fraction=0.1",
            "num_workers=1",
            "block_tokens=8192",
            "shard_bytes=131072",
        )
        == 0
    )
    return output


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 of scikit-learn's digits, prepared."""
    folder = tmp_path_factory.mktemp("digits")
    assert (
        prepare_images(
            write_digits(folder / "in", count=300), folder / "out", "valid_fraction=0.2", "shard_bytes=200000"
        )
        == 0
    )
    return folder / "out"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 prepared pairs, of which the target has the words of the source from last to first."""
    folder = tmp_path_factory.mktemp("pairs")
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "the", "of", "and", "to")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(2, 8))) for _ in range(600)]
    (folder / "a.en").write_text("\n".join(texts))
    (folder / "a.ne").write_text("\n".join(" ".join(reversed(text.split())) for text in texts))
    assert (
        prepare(
            "corpus=pairs",
            f"corpus.source=[{folder}/a.en]",
            f"corpus.target=[{folder}/a.ne]",
            f"output={folder / 'out'}",
            "tokenizer.vocab_size=300",
            "valid_fraction=0.1",
            "num_workers=1",
            "block_tokens=2048",
        )
        == 0
    )
    return folder / "out"
