from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import Manifest, TokenizerInfo, check_files, load_manifest, save_manifest
from data_pipeline.shards.tar import describe_split, finished_shards
from data_pipeline.shards.text import BlockWriter, TextIndex, TextReader, TokenizedDocument, token_dtype


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
    splits = {split: describe_split(str(root), split, TextIndex) for split in ("train", "valid")}
    save_manifest(Manifest(str(root), "text", TokenizerInfo("f", 300, 406), 1, 0.01, splits))
    return load_manifest(root)


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
            tokens, sentences = reader.read_block(shard, block)
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


def test_shards_continue_byte_for_byte_after_finished_ones(tmp_path: Path) -> None:
    made = documents(200)
    whole = write(tmp_path / "whole", made)
    write(tmp_path / "parts", made[:120])
    last = finished_shards(str(tmp_path / "parts"), "train", TextIndex)[-1][0]
    Path(last).unlink()  # not as long as it would have been
    (tmp_path / "parts/train/.shard-000009.tar.0123abcd.tmp").write_bytes(b"half")
    kept = finished_shards(str(tmp_path / "parts"), "train", TextIndex)
    done = sum(len(index.lengths) for _, index in kept)
    assert 0 < done < 120
    continued = write(tmp_path / "parts", made[done:], first=len(kept))
    assert continued.splits["train"] == whole.splits["train"]


def test_a_shard_cut_short_does_not_count_as_finished(tmp_path: Path) -> None:
    manifest = write(tmp_path, documents(200))
    count = len(manifest.splits["train"].shards)
    assert len(finished_shards(str(tmp_path), "train", TextIndex)) == count
    second = tmp_path / manifest.splits["train"].shards[1].name
    second.write_bytes(second.read_bytes()[:-512])
    assert len(finished_shards(str(tmp_path), "train", TextIndex)) == 1
    (tmp_path / manifest.splits["train"].shards[0].index).write_bytes(b"PK broken")
    assert finished_shards(str(tmp_path), "train", TextIndex) == []


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
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
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
    assert values["tokenizer"] == {"fingerprint": "f", "vocab_size": 300, "total_size": 406}
    assert values["splits"]["train"]["shards"][0] == dataclasses.asdict(manifest.splits["train"].shards[0])


def test_token_type_is_the_narrowest() -> None:
    assert token_dtype(65536) == np.uint16 and token_dtype(65537) == np.uint32
