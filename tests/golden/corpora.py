"""Small corpora of text and images, the same on every machine: drawn from a seed, written without a codec."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.golden import inner
from tests.helpers import prepare

# Blocks and shards are small, so that each split has several shards, each shard several blocks, each block several
# documents: more training shards than the 16 that the stream shuffles blocks among.
TEXT = (
    "corpus=text",
    "valid_fraction=0.1",
    "block_tokens=600",
    "shard_bytes=12000",
    "tokenizer.model_type=bpe",
    "tokenizer.vocab_size=400",
)
PAIRS = ("corpus=pairs", *TEXT[1:])
IMAGES = ("corpus=images", "valid_fraction=0.1", "shard_bytes=400000")
FEW_SHARDS = ("shard_bytes=1000000",)
PREPARED = {  # name -> (source, overrides)
    "images": ("images", IMAGES),
    "images, from a list": ("images.csv", (*IMAGES, *FEW_SHARDS, "seed=2")),
    "pairs": ("pairs.tsv", PAIRS),
    "text": ("text", TEXT),
    "text, char tokenizer": ("text", (*TEXT, *FEW_SHARDS, "tokenizer.model_type=char")),
    "text, unigram tokenizer": ("text", (*TEXT, *FEW_SHARDS, "tokenizer.model_type=unigram")),
}


def write_sources(folder: Path) -> None:
    """The raw files."""
    _write_text(folder / "text")
    _write_images(folder / "images")
    _write_pairs(folder / "pairs.tsv")


def prepare_case(name: str, sources: Path, output: Path) -> Path:
    """`pretrain-data` as PREPARED says -> output."""
    source, overrides = PREPARED[name]
    inputs = f"corpus.inputs=[{sources / source}]"
    assert prepare("seed=1", *overrides, inputs, f"output={output}", "num_workers=0") == 0
    return output


def with_similar_words(prepared: Path, target: Path) -> Path:
    """A copy of prepared text, with a table of similar words that its manifest names -> target."""
    shutil.copytree(prepared, target)
    table = inner.similar_table(target / "tokenizer")
    (target / "tokenizer" / "similar.npz").write_bytes(table)
    manifest = json.loads((target / "manifest.json").read_text("utf-8"))
    manifest["tokenizer"]["similar"] = hashlib.sha256(table).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return target


def _write_text(folder: Path) -> None:
    """360 documents: most are lines of a .jsonl file, some are .txt files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(20)
    words = _words(rng, 300)
    documents = [_document(words, rng) for _ in range(360)]
    lines = [json.dumps({"text": text}) for text in documents[:350]]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for number, text in enumerate(documents[350:]):
        (folder / f"file_{number}.txt").write_text(text, "utf-8")


def _write_pairs(path: Path) -> None:
    """400, of which the second has the first's words from last to first, in capitals."""
    rng = np.random.default_rng(22)
    words = _words(rng, 100)
    lines = [[words[n] for n in rng.integers(0, 100, length)] for length in rng.integers(1, 6, 400)]
    path.write_text("".join(f"{' '.join(a)}\t{' '.join(reversed(a)).upper()}\n" for a in lines), "utf-8")


def _words(rng: np.random.Generator, count: int) -> list[str]:
    syllables = [c + v for c in "bdfgklmnprst" for v in ("a", "e", "i", "o", "u", "é")]
    return ["".join(syllables[i] for i in rng.integers(0, len(syllables), n)) for n in rng.integers(1, 4, count)]


def _document(words: list[str], rng: np.random.Generator) -> str:
    """Two to nine sentences; a word's frequency falls with its number, so that pieces of words are worth merging."""
    sentences = []
    for length in rng.integers(4, 12, rng.integers(2, 10)):
        numbers = (len(words) * rng.random(length) ** 2).astype(int)
        sentences.append(" ".join(words[n] for n in numbers).capitalize() + ".")
    return " ".join(sentences)


def _write_images(folder: Path) -> None:
    """1000 of four classes, none square: a disc or a bar, of some color, upon a gradient. And a list of the last 90."""
    rng = np.random.default_rng(21)
    lines = ["file,label"]
    for number in range(1000):
        label = number % 4
        path = folder / f"class_{label}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(_picture(label, rng)))
        lines.append(f"{path.relative_to(folder.parent)},label {number % 3}")
    (folder.parent / "images.csv").write_text("\n".join([lines[0], *lines[-90:], ""]))


def _picture(label: int, rng: np.random.Generator) -> np.ndarray:
    """-> uint8 [height, width, 3]."""
    height, width = rng.integers(12, 19, 2)
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 9 + rng.integers(80), columns * 9 + rng.integers(80), rows + columns], axis=-1)
    center = rng.integers(4, 9, 2)
    disc = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < 12
    bar = np.abs(rows - center[0]) < 2
    image[disc if label % 2 else bar] = rng.integers(0, 256, 3) if label < 2 else (250, 250, 20)
    return image.astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    """image: uint8 [height, width, 3]. Stored, not compressed: compressors differ from version to version."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows  # one final deflate block of type 0
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
