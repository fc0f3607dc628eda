"""The raw files of each comparison: published texts and photos where they are, else what Python brings along.

The shared folder is $PRETRAINING_SHARED, or `shared` beside the checkout.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAY_BYTES = 1_115_394  # tinyshakespeare's size, for the text that takes its place
NOVELS = 14
SHORTEST_PARAGRAPH = 64  # characters: headings and short lines of dialog are left out


def write_inputs(family: str, folder: Path) -> tuple[list[Path], str]:
    """Writes into `folder` what pretrain-data is to read -> (its inputs, where they come from)."""
    folder.mkdir(parents=True)
    data = Path(os.environ.get("PRETRAINING_SHARED", ROOT.parent / "shared")) / "data"
    if family == "vit":
        return _photos(data / "images/clothing_small_160", folder)
    if family == "gpt":
        return _play(data / "text/tinyshakespeare/input.txt", folder)
    novels = data / "text/gutenberg_novels/gutenberg_novels.tar.xz"
    texts, source = (_novels(novels), f"{NOVELS} novels") if novels.is_file() else (_sources(), "Python sources")
    return _paragraphs(texts, source, folder) if family == "t5" else _files(texts, source, folder)


def _photos(photos: Path, folder: Path) -> tuple[list[Path], str]:
    if photos.is_dir():
        return [photos / split for split in ("train", "validation", "test")], "clothing-dataset-small"
    write = [sys.executable, "-m", "data_pipeline.sources.digits", str(folder / "digits")]
    subprocess.run(write, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [folder / "digits"], "scikit-learn's digits"


def _play(play: Path, folder: Path) -> tuple[list[Path], str]:
    if play.is_file():
        return [play], "tinyshakespeare"
    text = "".join(t for t in _sources() if t.isascii())
    (folder / "sources.txt").write_text(text[:PLAY_BYTES])
    return [folder / "sources.txt"], "Python sources"


def _files(texts: Iterator[str], source: str, folder: Path) -> tuple[list[Path], str]:
    for number, text in enumerate(texts):
        (folder / f"{number:05d}.txt").write_text(text)
    return [folder], source


def _paragraphs(texts: Iterator[str], source: str, folder: Path) -> tuple[list[Path], str]:
    """A document each."""
    path = folder / "paragraphs.jsonl"
    with path.open("w") as file:
        for text in texts:
            for part in re.split(r"\n\s*\n", text):
                paragraph = " ".join(part.split()) if source != "Python sources" else part
                if len(paragraph) >= SHORTEST_PARAGRAPH:
                    file.write(json.dumps({"text": paragraph}) + "\n")
    return [path], f"paragraphs of {source}"


def _novels(archive: Path) -> Iterator[str]:
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        for member in members[:NOVELS]:
            file = tar.extractfile(member)
            assert file is not None
            yield file.read().decode("utf-8-sig")


def _sources() -> Iterator[str]:
    """The standard library's modules, without its tests."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = set(path.relative_to(library).parts)
        if not parts & {"test", "tests", "site-packages", "lib2to3", "idlelib"}:
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # some modules are in another encoding on purpose
