"""A tokenizer.json is tried in a process of its own before it is used in ours: it decides how much time and memory a
text takes, and the library that reads it may abort the whole process.

`python -m data_pipeline.tokenizers.trial CPU_SECONDS < tokenizer.json` is that process: exit code 0, or 3 with the
reason.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

from data_pipeline.common.errors import InputError

CPU_SECONDS = 20  # one of 256,000 pieces takes 2, and 0.4 GB
_WAIT_SECONDS = 120.0  # where others take the processor
_MEMORY_BYTES = 1 << 30
_REFUSED = 3
_MOST_GROWTH = 64  # tokens of a byte, characters of a character: compatibility forms have up to 18
_DERIVED_CHARACTERS = 1 << 14
_DECODED_IDS = 1000

_PROSE = "The quick brown fox, aged 31, jumps over the lazy dog's 12.5 meters\tof fence; doesn't it?\n"
_TEXTS = (
    *("", " ", " " * 300, "\n" * 100, "a" * 300, "ab " * 100, "9" * 300, "A" * 300, "-" * 300, "x=y;" * 100),
    "".join(map(chr, range(32, 127))),
    "e\u0301 é ﬁ ½ ㎏ \u212b \ufdfa \u2581 \u0120 \ue000 \ufdd0 \0 \x1f \ufeff \U0001f469\u200d\U0001f467 \U0010ffff",
    "日本語 テキスト 中文字符，和标点。 مرحبا Привет, мир! ÀÉÎÕÜ ß สวัสดี नमस्ते 안녕하세요",
    _PROSE * 200,
    _PROSE.replace(" ", "") * 20,
)


def check_trial(data: bytes) -> None:
    """Encodes and decodes a few texts with a tokenizer.json. Raises InputError where that fails, or takes more than
    CPU_SECONDS or _MEMORY_BYTES."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # -P: no module of the working directory is imported
    command = [sys.executable, "-P", "-m", "data_pipeline.tokenizers.trial", str(CPU_SECONDS)]
    too_long = f"it takes more than {CPU_SECONDS} seconds to encode a few short texts"
    try:
        ended = subprocess.run(
            command, input=data, capture_output=True, timeout=_WAIT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(too_long) from error
    if ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(too_long)
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        last = said[-1][:300] if said else f"exit code {ended.returncode}"
        if ended.returncode == _REFUSED:
            raise InputError(f"it cannot encode every text: {last}")
        raise InputError(f"encoding a few short texts with it ends a process (exit code {ended.returncode}): {last}")


def texts(data: bytes) -> Iterator[str]:
    """What is encoded: usual and unusual text, and what the file itself replaces and splits at."""
    yield from _TEXTS
    values = json.loads(data)
    found = "".join(
        s[:200] * 3 for part in ("normalizer", "pre_tokenizer", "decoder") for s in _strings(values.get(part))
    )
    found = found[:_DERIVED_CHARACTERS].encode("utf-8", "replace").decode()
    yield found
    yield "".join(character * 3 for character in dict.fromkeys(found))


def _strings(values: object) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    children = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    for child in children:
        yield from _strings(child)


def _try(data: bytes) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    for text in texts(data):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > _MOST_GROWTH * len(text.encode()) + _MOST_GROWTH:
            raise ValueError(f"{len(text)} characters become {len(ids)} tokens")
        if len(tokenizer.decode(ids[:_DECODED_IDS])) > _MOST_GROWTH * len(text) + 100 * _DECODED_IDS:
            raise ValueError("tokens become far more text than they were made of")
    vocabulary = sorted(tokenizer.get_vocab().values())
    for i in vocabulary[:: max(1, len(vocabulary) // _DECODED_IDS)]:
        tokenizer.decode([i])


def _main() -> int:
    limits = ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_CPU, int(sys.argv[1])), (resource.RLIMIT_CORE, 0))
    for limited, most in limits:
        _, before = resource.getrlimit(limited)
        least = most if before == resource.RLIM_INFINITY else min(most, before)  # the job's own limit stays
        resource.setrlimit(limited, (least, least))
    try:
        _try(sys.stdin.buffer.read())
    except BaseException as error:  # the library's panics are no Exception
        print(f"\n{' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
