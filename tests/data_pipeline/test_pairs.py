"""corpus=pairs: what is read of parallel files and of files with both texts, and how a pair stands in the shards."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader, halves
from data_pipeline.sources.pairs import PairsConfig, PairsSource, sides
from data_pipeline.tokenizers.tokenizer import Tokenizer
from tests.helpers import command, prepare

PAIRS = [(f"the {n} green houses of street {n}", f"die {n} grünen Häuser der Straße {n * 7}") for n in range(300)]
SMALL = ("tokenizer.vocab_size=400", "valid_fraction=0.1", "block_tokens=500", "shard_bytes=20000")


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def parallel(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> tuple[str, str]:
    source, target = write(folder / "a.en", [a for a, _ in pairs]), write(folder / "a.de", [b for _, b in pairs])
    return f"corpus.source=[{source}]", f"corpus.target=[{target}]"


def documents(root: Path, split: str) -> list[tuple[str, str]]:
    tokenizer, reader = Tokenizer.load(root / "tokenizer"), TextReader(load_manifest(root), split)
    found = []
    for shard, blocks in enumerate(reader.blocks_per_shard):
        for block in range(blocks):
            for document in range(len(reader.document_lengths(shard, block))):
                pair = reader.read_document(shard, block, document)
                assert len(pair.sentences) == 2 and len(pair.tokens) > pair.sentences[1] > 0
                source, target = halves(pair)
                found.append((tokenizer.decode(source.tolist()), tokenizer.decode(target.tolist())))
    return found


def read(**keys: object) -> list[tuple[str, str]]:
    return [sides(document.text) for document in PairsSource(PairsConfig(kind="pairs", **keys)).documents()]


def test_every_pair_comes_back_with_its_border(tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare("corpus=pairs", *parallel(tmp_path), f"output={out}", *SMALL) == 0
    assert load_manifest(out).kind == "pairs"
    train, valid = documents(out, "train"), documents(out, "valid")
    assert sorted(train + valid) == sorted(PAIRS) and 10 < len(valid) < 60
    assert command("data_pipeline.verify", f"output={out}") == 0


def test_all_translations_of_a_sentence_are_in_one_split(tmp_path):
    pairs = [(f"{a} {n // 3}", f"{b} {n}") for n in range(240) for a, b in [("sentence", "Satz")]]
    out = tmp_path / "out"
    assert prepare("corpus=pairs", *parallel(tmp_path, pairs), f"output={out}", *SMALL) == 0
    train, valid = ({a for a, _ in documents(out, split)} for split in ("train", "valid"))
    assert len(train) + len(valid) == 80 and not train & valid


def test_tsv_and_jsonl_give_the_same_pairs(tmp_path):
    tsv = write(tmp_path / "a.tsv", [f"{a}\t{b}\tmore" for a, b in PAIRS])
    lines = [json.dumps({"translation": {"en": a, "de": b}}) for a, b in PAIRS]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(f"{line}\n" for line in lines)
    fields = {"source_field": "translation.en", "target_field": "translation.de"}
    assert read(inputs=[tsv]) == PAIRS == read(inputs=[str(tmp_path / "a.jsonl.gz")], **fields)


def test_what_is_no_pair_is_left_out_or_refused(tmp_path):
    source = PairsSource(PairsConfig(kind="pairs", inputs=[write(tmp_path / "a.tsv", ["x\ty", " \ty", "a\u2028\tb"])]))
    assert [d.text for d in source.documents()] == ["x\ny", "a\u2028\nb"]
    assert str(source.left_out) == "left out: 1 pairs with an empty side"
    bad = write(tmp_path / "b.tsv", ["x\ty", "no tab"])
    assert read(inputs=[bad], max_bad_lines=1) == [("x", "y")]
    with pytest.raises(Exception, match=r"b.tsv, line 2: no tab"):
        read(inputs=[bad])
    broken = write(tmp_path / "c.jsonl", [json.dumps({"source": "a\nb", "target": "c"})])
    assert read(inputs=[broken]) == [("a b", "c")]
    with pytest.raises(Exception, match=r"corpus\.target_field"):
        read(inputs=[broken], target_field="german")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([], "either corpus.inputs"),
        (["corpus.inputs=[{0}/a.tsv]", "corpus.source=[{0}/a.en]"], "either corpus.inputs"),
        (["corpus.source=[{0}/a.en]"], "names 1 files and corpus.target 0"),
        (["corpus.source=[{0}/a.en]", "corpus.target=[{0}/short.de]"], "short.de has 299 lines and"),
        (["corpus.source=[{0}/a.en]", "corpus.target=[{0}/none.de]"], "none.de cannot be read"),
        (["corpus.inputs=[{0}/a.en]"], "unsupported type"),
        (["corpus.source=[{0}/latin.en]", "corpus.target=[{0}/latin.en]"], "latin.en, line 1: not UTF-8"),
        (["corpus.inputs=[{0}/pipe.tsv]"], "pipe.tsv is no file"),
        (["corpus.source=[{0}]", "corpus.target=[{0}/a.de]"], "is no file"),
        (["corpus.inputs=[{0}/zero.tsv]"], "zero.tsv is no file"),
        (["corpus.inputs=[{0}/cut.tsv.gz]"], "cut.tsv.gz: the compressed file is damaged or truncated"),
        (["corpus.inputs=[{0}/*.none]"], "matches no files"),
    ],
)
def test_bad_inputs_end_with_2_and_write_nothing(keys, told, tmp_path, capsys):
    parallel(tmp_path)
    write(tmp_path / "short.de", ["x"] * 299)
    (tmp_path / "latin.en").write_bytes("Straße\n".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe.tsv")
    (tmp_path / "zero.tsv").symlink_to("/dev/zero")
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 1000)[:-9])
    code = prepare("corpus=pairs", *(key.format(tmp_path) for key in keys), f"output={tmp_path / 'out'}", *SMALL)
    assert code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
