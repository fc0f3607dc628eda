"""Peak memory of training a tokenizer, per byte of sample: for data_pipeline/tokenizers/sentencepiece_model.py.

Run: python -m benchmarks.tokenizer_memory bpe|unigram VOCAB_SIZE MEGABYTES FILE_OR_FOLDER...
"""

from __future__ import annotations

import resource
import sys
import time

from data_pipeline.common.errors import InputError
from data_pipeline.sources.text import TextConfig, TextSource
from data_pipeline.tokenizers.sentencepiece_model import train, training_memory_bytes


def main(model_type: str, vocab_size: int, megabytes: float, inputs: list[str]) -> None:
    source = TextSource(TextConfig("text", inputs, exclude=["*/test/*", "*/site-packages/*"]))
    texts: list[str] = []
    size = 0
    for document in source.documents():
        texts.append(document.text)
        size += len(document.text.encode())
        if size > megabytes * 1e6:
            break
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    train(texts, model_type, vocab_size)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(
        f"{model_type} {vocab_size}: {size / 1e6:.1f} MB, {time.monotonic() - started:.1f} s, "
        f"{taken / 1e6:.0f} MB taken ({taken / size:.1f} per byte), "
        f"estimate {training_memory_bytes(model_type, size) / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
    except (IndexError, InputError) as error:
        sys.exit(f"{error}\n{__doc__}")
