from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import (
    Manifest,
    Shard,
    Split,
    TokenizerInfo,
    check_files,
    load_manifest,
    save_manifest,
)
from data_pipeline.shards.record import begin_record, damage, end_record, load_record, shard_name
from data_pipeline.shards.text import BlockWriter, TextReader, TokenizedDocument, token_dtype


def documents(count: int, longest: int = 40) -> list[TokenizedDocument]:
    rng = np.random.default_rng(0)
    made = []
    for length in rng.integers(1, longest, count):
        sentences = np.unique([0, *rng.integers(0, length, 3)]).astype(np.int64)
        made.append(TokenizedDocument(rng.integers(0, 60000, length).astype(np.uint16), sentences))
    return made


def write(root: Path, train: list[TokenizedDocument], first: int = 0, shard_bytes: int = 20_000) -> Manifest:
    with BlockWriter(str(root), "train", 100, shard_bytes, first) as writer:
        for document in train:
            writer.add(document)
    with BlockWriter(str(root), "valid", 100, shard_bytes) as writer:
        writer.add(train[0])
    splits = {split: Split.of(shards) for split, shards in load_record(str(root)).shards.items()}
    save_manifest(Manifest(str(root), "text", TokenizerInfo("f", 300, 60000), 1, 0.01, splits))
    end_record(str(root))
    return load_manifest(root)


def whole_shards(root: Path) -> Sequence[Shard]:
    """Those of training that a preparation would keep."""
    record = load_record(str(root))
    return record.up_to_the_first(damage(str(root), record.all_shards, 2))["train"]


def change(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_blocks_come_back_whole_and_in_order(tmp_path: Path) -> None:
    made = documents(200)
    manifest = write(tmp_path, made)
    check_files(manifest)
    train = manifest.splits["train"]
    assert (train.documents, train.tokens) == (200, sum(len(d.tokens) for d in made))
    assert len(train.shards) > 3 and all(s.bytes < 40_000 for s in train.shards)
    reader, number = TextReader(manifest, "train"), 0
    for shard, described in enumerate(train.shards):
        index = reader.index(shard)
        assert len(index.documents) == described.samples
        assert len(reader.lengths(shard)) == index.documents.sum() == described.documents
        for block, count in enumerate(index.documents):
            tokens, sentences, _ = reader.read_block(shard, block)
            expected = made[number : number + count]
            starts = np.cumsum([0] + [len(d.tokens) for d in expected])
            assert tokens.dtype == np.uint16 and sentences.dtype == np.int64
            assert tokens.tolist() == np.concatenate([d.tokens for d in expected]).tolist()
            assert sentences.tolist() == [
                int(s) + at for d, at in zip(expected, starts, strict=False) for s in d.sentences
            ]
            assert len(tokens) <= 100 or count == 1
            number += count
    assert number == 200


def test_document_longer_than_a_block_makes_a_longer_block(tmp_path: Path) -> None:
    made = [TokenizedDocument(np.arange(n, dtype=np.uint16), np.array([0])) for n in (10, 500, 10)]
    manifest = write(tmp_path, made)
    assert TextReader(manifest, "train").index(0).documents.tolist() == [1, 1, 1]


def test_shards_continue_byte_for_byte_after_whole_ones(tmp_path: Path) -> None:
    made, parts = documents(200), tmp_path / "parts"
    whole = write(tmp_path / "whole", made)
    count = len(write(parts, made[:120]).splits["train"].shards)
    (parts / "train" / shard_name(count - 1)).unlink()  # not as long as it would have been
    kept = whole_shards(parts)
    done = sum(shard.documents for shard in kept)
    assert 0 < done < 120
    begin_record(str(parts), {"train": kept, "valid": ()}, "f")
    assert write(parts, made[done:], first=len(kept)).splits["train"] == whole.splits["train"]


def test_a_shard_that_is_not_what_was_written_does_not_count_as_finished(tmp_path: Path) -> None:
    manifest = write(tmp_path, documents(200))
    first, second, third = manifest.splits["train"].shards[:3]
    assert len(whole_shards(tmp_path)) == len(manifest.splits["train"].shards) > 3
    change(tmp_path / third.name, 600)
    assert len(whole_shards(tmp_path)) == 2
    (tmp_path / second.name).write_bytes((tmp_path / second.name).read_bytes()[:-512])
    assert len(whole_shards(tmp_path)) == 1
    (tmp_path / first.index).write_bytes(b"PK broken")
    assert whole_shards(tmp_path) == ()


@pytest.mark.parametrize("cut", [0, 1, 30, 400])
def test_a_torn_line_of_the_record_costs_its_shard_and_those_behind(tmp_path: Path, cut: int) -> None:
    with BlockWriter(str(tmp_path), "train", 100, 20_000) as writer:
        for document in documents(200):
            writer.add(document)
    record = tmp_path / "sums.jsonl"
    count = len(load_record(str(tmp_path)).shards["train"])
    record.write_bytes(record.read_bytes()[: -cut or None])
    assert count - len(whole_shards(tmp_path)) == {0: 0, 1: 0, 30: 1, 400: 2}[cut]
    record.write_bytes(b"[1]\n" + record.read_bytes())
    assert len(whole_shards(tmp_path)) == 0


def test_the_webdataset_library_reads_them(tmp_path: Path) -> None:
    import io

    webdataset = pytest.importorskip("webdataset")
    made = documents(50)
    manifest = write(tmp_path, made, shard_bytes=1 << 20)
    name = str(tmp_path / manifest.splits["train"].shards[0].name)
    samples = list(webdataset.WebDataset(name, shardshuffle=False))
    assert len({s["__key__"] for s in samples}) == manifest.splits["train"].samples == len(samples)
    found: list[Any] = []
    for sample in samples:
        tokens, borders = (np.load(io.BytesIO(sample[f"{m}.npy"]), allow_pickle=False) for m in ("tokens", "documents"))
        found += [tokens[a:b].tolist() for a, b in pairwise(borders)]
    assert found == [d.tokens.tolist() for d in made]


def test_files_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    manifest = write(tmp_path, documents(200))
    first, second = manifest.splits["train"].shards[:2]
    (tmp_path / first.name).unlink()
    (tmp_path / second.name).write_bytes(b"short")
    expected = rf"(?s)000000\.tar is missing.*000001\.tar has 5 bytes.* {second.bytes}"
    with pytest.raises(InputError, match=expected):
        check_files(manifest)


@pytest.mark.parametrize("member", ["name", "index"])
def test_changed_bytes_are_noticed_at_the_first_read(tmp_path: Path, member: str) -> None:
    manifest = write(tmp_path, documents(50))
    shard = manifest.splits["train"].shards[0]
    path = tmp_path / getattr(shard, member)
    change(path, 600)
    check_files(manifest)
    expected = shard.sha256 if member == "name" else shard.index_sha256
    with pytest.raises(InputError, match=f"{path} differs.*expected {expected}, found "):
        TextReader(manifest, "train").read_block(0, 0)


def test_manifest_that_is_missing_broken_or_newer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        load_manifest(tmp_path)
    file = tmp_path / "manifest.json"
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1}', "broken"),
        ('{"format": 1, "splits": 3}', "broken"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            load_manifest(tmp_path)


def test_manifest_says_what_the_contract_asks(tmp_path: Path) -> None:
    manifest = write(tmp_path, documents(20))
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert (values["format"], values["kind"], values["seed"]) == (1, "text", 1)
    assert values["tokenizer"] == {"fingerprint": "f", "vocab_size": 300, "total_size": 60000}
    assert values["splits"]["train"]["shards"][0] == dataclasses.asdict(manifest.splits["train"].shards[0])


def test_token_type_is_the_narrowest() -> None:
    assert token_dtype(65536) == np.uint16 and token_dtype(65537) == np.uint32
