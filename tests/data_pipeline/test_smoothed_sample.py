"""The text that a tokenizer of several languages is trained on."""

from __future__ import annotations

import json
from collections import Counter

from data_pipeline.sources.scan import SmoothedSample, hashed
from data_pipeline.sources.text import RawDocument
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import prepare


def test_a_tokenizers_sample_is_smoothed_over_the_inputs(tmp_path, capsys):
    """By counts: each input's part is its bytes to the power, or all that it has."""
    sample = SmoothedSample(10_000, 0.5)
    for number in range(1000):  # 64,000, 16,000 and 20 bytes
        for entry, every, size in ((0, 1, 64), (1, 4, 64), (2, 500, 10)):
            if number % every == 0:
                name = f"{entry}-{number}-".ljust(size, "x")
                sample.offer(number, next(hashed([RawDocument(name, "", entry)], seed=1)))
    kept = Counter()
    for text in sample.texts():
        kept[text[0]] += len(text)
    roots = {"0": 64_000**0.5, "1": 16_000**0.5, "2": 20**0.5}
    parts = {entry: 10_000 * root / sum(roots.values()) for entry, root in roots.items()}
    assert all(parts[entry] - 64 < kept[entry] <= parts[entry] for entry in "01") and kept["2"] == 20 < parts["2"]
    assert sample.bytes == sum(kept.values())

    for name, count in (("en", 400), ("sw", 40)):
        (tmp_path / name).mkdir()
        texts = [f"{name} {n} " + ("the house of " if name == "en" else "nyumba ya ") * 9 for n in range(count)]
        (tmp_path / name / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    inputs = f"corpus.inputs=[{tmp_path}/en,{tmp_path}/sw]"
    options = (inputs, "tokenizer.vocab_size=300", "tokenizer.sample_bytes=20000", "num_workers=1")
    assert prepare(*options, f"output={tmp_path}/plain") == 0
    assert prepare(*options, f"output={tmp_path}/smooth", "tokenizer.smoothing=0.3") == 0
    pieces = [Tokenizer.load(tmp_path / name / "tokenizer").pieces for name in ("plain", "smooth")]
    assert pieces[0] != pieces[1]
    assert prepare(*options, f"output={tmp_path}/smooth", "tokenizer.smoothing=0.7") == 2
    capsys.readouterr()
    alone = f"corpus.inputs=[{tmp_path}/en]"
    assert prepare(alone, f"output={tmp_path}/no", "tokenizer.smoothing=0.3") == 2
    assert "needs corpus=text with several of them" in capsys.readouterr().err
