"""pretrain-data for images: shards, their index, determinism, broken images and every refused input."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from data_pipeline.common.errors import InputError
from data_pipeline.shards.image_codec import BrokenImage, EncodedImage, _rgb, decode, decode_rgb
from data_pipeline.shards.images import ImageReader
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.sources.images import classes_of
from data_pipeline.stream.packing import Single
from data_pipeline.stream.stream import Position, Stream
from tests.helpers import SHARED, prepare, run_process
from tests.images import png, prepare_images, write_digits

SMALL_SHARDS = ("valid_fraction=0.2", "shard_bytes=60000")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), count=200)


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "data"
    assert prepare_images(source, output, *SMALL_SHARDS) == 0
    return output


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock"
    }


def all_images(root: Path, split: str) -> list[EncodedImage]:
    reader = ImageReader(load_manifest(root), split)
    return [
        reader.read_document(shard, block, i)
        for shard, blocks in enumerate(reader.blocks_per_shard)
        for block in range(blocks)
        for i in range(len(reader.document_lengths(shard, block)))
    ]


def test_every_image_is_there_once_with_its_bytes_and_its_class(source: Path, prepared: Path) -> None:
    classes = load_manifest(prepared).classes
    found = {(classes[i.label], i.data) for split in ("train", "valid") for i in all_images(prepared, split)}
    files = [(path.parent.name, path.read_bytes()) for path in source.rglob("*.png")]
    assert found == set(files) and len(files) == 200
    assert classes == tuple("0123456789")


def test_the_manifest_counts_images_and_checksums(prepared: Path) -> None:
    manifest = load_manifest(prepared)
    assert manifest.kind == "images" and manifest.tokenizer is None
    assert sum(split.samples for split in manifest.splits.values()) == 200
    assert len(manifest.splits["train"].shards) > 1
    for shard in (s for split in manifest.splits.values() for s in split.shards):
        data = (prepared / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest(), shard.tokens) == (shard.bytes, shard.sha256, 0)


def test_the_webdataset_library_reads_the_shards(prepared: Path) -> None:
    import webdataset

    manifest = load_manifest(prepared)
    shard = manifest.splits["train"].shards[0]
    samples = list(webdataset.WebDataset(str(prepared / shard.name), shardshuffle=False))
    first = all_images(prepared, "train")[0]
    assert len(samples) == shard.samples
    assert (samples[0]["png"], int(samples[0]["cls"])) == (first.data, first.label)


def test_workers_and_a_killed_run_change_no_byte(source: Path, prepared: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert prepare_images(source, again, *SMALL_SHARDS, "num_workers=2") == 0
    assert contents(again) == contents(prepared)
    for name in ("manifest.json", "train/shard-000001.tar"):
        (again / name).unlink()
    (again / "train" / ".shard-000001.tar.0123abcd.tmp").write_bytes(b"half")
    assert prepare_images(source, again, *SMALL_SHARDS) == 0
    assert contents(again) == contents(prepared)


def test_a_complete_folder_is_left_alone_and_other_settings_are_refused(
    source: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(prepared)
    assert prepare_images(source, prepared, *SMALL_SHARDS) == 0
    assert "already complete" in capsys.readouterr().out
    assert prepare_images(source, prepared, "valid_fraction=0.3", "shard_bytes=60000") == 2
    assert "valid_fraction" in capsys.readouterr().err
    assert contents(prepared) == before


def test_the_smallest_hash_is_in_validation_and_equal_images_share_a_split(tmp_path: Path) -> None:
    source = write_digits(tmp_path / "in", count=20)
    for i in range(5):
        (source / "0" / f"copy{i}.png").write_bytes((source / "0" / "0000.png").read_bytes())
    assert prepare_images(source, tmp_path / "out", "valid_fraction=0") == 0
    train, valid = (all_images(tmp_path / "out", split) for split in ("train", "valid"))
    digests = [hashlib.blake2b(i.data, key=b"1", digest_size=16).digest() for i in train + valid]
    assert hashlib.blake2b(valid[0].data, key=b"1", digest_size=16).digest() == min(digests)
    assert not {i.data for i in train} & {i.data for i in valid}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_lists_of_files_and_labels(kind: str, source: Path, tmp_path: Path) -> None:
    rows = [{"picture": str(p.relative_to(source)), "kind": f"digit {p.parent.name}"} for p in source.rglob("*.png")]
    path = source / f"list.{kind}"
    with path.open("w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, ["picture", "kind"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    code = prepare_images(path, tmp_path / "out", "corpus.file_field=picture", "corpus.label_field=kind")
    path.unlink()
    assert code == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest.classes == tuple(f"digit {i}" for i in range(10))
    assert sum(split.samples for split in manifest.splits.values()) == 200


def listed(folder: Path, name: str, content: bytes, *options: str) -> tuple[str, ...]:
    """The classes of a list beside two images, 0.png and 1.png."""
    for number in range(2):
        (folder / f"{number}.png").write_bytes(png(np.full((4, 4, 3), 40 * number, np.uint8)))
    (folder / name).write_bytes(content)
    assert prepare_images(folder / name, folder / f"{name}.out", *options) == 0
    return load_manifest(folder / f"{name}.out").classes


def test_labels_of_lists_may_be_nested_as_those_of_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [{"f": {"n": f"{i}.png"}, "meta": {"label": f"c{i}"}} for i in range(2)]
    nested = ("corpus.file_field=f.n", "corpus.label_field=meta.label")
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert listed(tmp_path, "a.jsonl", content, *nested) == ("c0", "c1")
    flat = b"f.n,meta.label\n0.png,c0\n1.png,c1\n"
    assert listed(tmp_path, "a.csv", flat, *nested) == ("c0", "c1")
    (tmp_path / "b.jsonl").write_text('{"f": {"n": "0.png"}, "meta": {}}\n')
    assert prepare_images(tmp_path / "b.jsonl", tmp_path / "out", *nested) == 2
    assert "needs the fields 'f.n' (corpus.file_field) and 'meta.label'" in capsys.readouterr().err
    (tmp_path / "c.jsonl").write_text('{"f": {"n": "0.png"}, "meta": {"label": null}}\n')
    assert prepare_images(tmp_path / "c.jsonl", tmp_path / "out", *nested) == 2
    assert "line 1: meta.label=None is not a label" in capsys.readouterr().err


def test_a_blank_before_a_quote_is_no_part_of_a_label(tmp_path: Path) -> None:
    assert listed(tmp_path, "a.csv", b'file, label\n0.png, "c,0"\n1.png, c1\n') == ("c,0", "c1")


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", "LATIN1"), ("utf-16", "UTF-16")])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_list_that_is_not_utf8_is_told_with_the_remedy(
    suffix: str, encoding: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a list.{suffix}"
    path.write_bytes("file,label\n0.png,é\n".encode(encoding))
    assert prepare_images(path, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert f"{path} is not UTF-8" in told and f"`iconv -f {name} -t UTF-8 '{path}'`" in told


def test_whole_numbers_are_ordered_by_value() -> None:
    assert classes_of(["10", "9", "0", "9"]) == ("0", "9", "10")
    assert classes_of(["b10", "b9"]) == ("b10", "b9")


def test_broken_images_are_all_named_and_left_out_up_to_the_limit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_digits(tmp_path / "in", count=30)
    whole = (folder / "1" / "0001.png").read_bytes()
    (folder / "1" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2" / "none.png").write_bytes(b"")
    for number in range(5):
        (folder / "1" / f"text{number}.jpg").write_text("no image")
    named = [
        "cut.png: ",
        "none.png: an empty file",
        *(f"text{number}.jpg: its content is neither JPEG nor PNG" for number in range(5)),
    ]
    assert prepare_images(folder, tmp_path / "stops", "corpus.max_bad_images=6") == 2
    error = capsys.readouterr().err
    assert all(name in error for name in named) and " at 0x" not in error
    assert "7 broken images" in error and "corpus.max_bad_images=6" in error
    assert not (tmp_path / "stops").exists()
    assert prepare_images(folder, tmp_path / "out", "corpus.max_bad_images=7") == 0
    out = capsys.readouterr().out
    assert "7 broken images skipped" in out and all(name in out for name in named)
    assert sum(s.samples for s in load_manifest(tmp_path / "out").splits.values()) == 30


def test_the_content_decides_the_member_s_suffix(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "in", count=10)
    (folder / "0" / "0000.png").rename(folder / "0" / "named_wrongly.JPEG")
    assert prepare_images(folder, tmp_path / "out") == 0
    for split in ("train", "valid"):
        with tarfile.open(tmp_path / "out" / split / "shard-000000.tar") as tar:
            assert {name.split(".")[1] for name in tar.getnames()} == {"png", "cls"}


def test_refused_inputs_name_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, loose, flat, deep, kinds = (tmp_path / n for n in ("empty", "loose", "flat", "deep", "kinds"))
    empty.mkdir()
    write_digits(loose, count=10)
    (loose / "void").mkdir()
    write_digits(flat, count=10)
    (flat / "beside.png").write_bytes(b"")
    write_digits(deep / "train", count=10)
    write_digits(kinds, count=10)
    (kinds / "0" / "moving.gif").write_bytes(b"GIF89a")
    table = tmp_path / "table.csv"
    table.write_text("file,label\nmissing.png,1\n")
    headless = tmp_path / "headless.csv"
    headless.write_text("a.png,1\nb.png,2\n")
    for path, message in (
        (empty, "no class folders"),
        (loose, "void is empty"),
        (flat, "beside.png"),
        (deep, "subfolders are the classes"),
        (kinds, "moving.gif has an unsupported type"),
        (tmp_path / "nowhere", "does not exist"),
        (table, "does not exist"),
        (headless, "corpus.file_field"),
    ):
        assert prepare_images(path, tmp_path / "out") == 2, path
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert prepare_images(kinds, tmp_path / "out", "corpus.exclude=['*.gif']") == 0
    assert prepare("corpus=images", "corpus.inputs=[]", f"output={tmp_path / 'none'}") == 2


def test_of_several_problems_the_first_ten_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_digits(tmp_path / "in", count=10)
    for name in ("void", "hollow"):
        (folder / name).mkdir()
    (folder / "0" / "moving.gif").write_bytes(b"GIF89a")
    table = tmp_path / "table.csv"
    missing = "".join(f"missing{n}.png,1\n" for n in range(12))
    table.write_text("file,label\nin/0/0000.png,\nin/1/0001.png, \nin/2/0002.png\n,1\n" + missing)
    assert prepare("corpus=images", f"corpus.inputs=[{folder},{table}]", f"output={tmp_path / 'out'}") == 2
    message = capsys.readouterr().err
    for part in (
        "void is empty",
        "hollow is empty",
        "moving.gif has an unsupported type",
        "line 2: label='' is not a label",
        "line 3: label='' is not a label",
        "line 4: label=None is not a label",
        "line 5: file='' does not name a file",
        "missing5.png",
        "... and 6 more like these",
    ):
        assert part in message
    assert "missing6.png" not in message and not (tmp_path / "out").exists()


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(np.zeros((20, 30, 3), np.uint8))
    assert decode(data).size == (30, 20)
    monkeypatch.setattr("data_pipeline.shards.image_codec.MAX_PIXELS", 599)
    with pytest.raises(BrokenImage, match="30 x 20 pixels"):
        decode(data)
    monkeypatch.setattr("data_pipeline.shards.image_codec.MAX_IMAGE_BYTES", 10)
    with pytest.raises(BrokenImage, match="bytes, more than 10"):
        decode(data)


def test_a_decompression_bomb_is_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImage, match="decompression bomb"):
        decode(png(np.zeros((20, 30, 3), np.uint8)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    data = io.BytesIO()
    (Image.new(mode, (5, 4)) if mode == "I;16" else Image.new("RGB", (5, 4)).convert(mode)).save(data, "PNG")
    assert decode_rgb(EncodedImage(data.getvalue(), 0, "x")).mode == "RGB"


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    data, gray = io.BytesIO(), Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16))
    gray.save(data, "PNG")
    expected = [[[shade] * 3 for shade in (0, 1, 128, 255)]]
    assert np.asarray(decode_rgb(EncodedImage(data.getvalue(), 0, "x"))).tolist() == expected
    assert np.asarray(_rgb(gray.convert("I"))).tolist() == expected  # as older Pillows open such a file


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(orientation: int, kind: str) -> None:
    array = np.kron(np.array([[0, 80], [160, 240], [40, 120]], np.uint8), np.ones((16, 16), np.uint8))
    image, exif, data = Image.fromarray(array).convert("RGB"), Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(data, kind, exif=exif, quality=100)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(data)).convert("RGB"))
    assert np.array_equal(np.asarray(decode_rgb(EncodedImage(data.getvalue(), 0, "x"))), expected)
    assert expected.shape[:2] == ((48, 32) if orientation < 5 else (32, 48))


def shown(image: Image.Image, kind: str = "PNG", **options: Any) -> Any:
    """What training sees of a saved image: uint8 [height, width, 3]."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return np.asarray(decode_rgb(EncodedImage(data.getvalue(), 0, "x")))


def test_of_several_pictures_in_a_file_the_first_is_taken(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 8), (200, 30, 30)), Image.new("RGB", (8, 8))
    folder = write_digits(tmp_path / "in", count=10)
    first.save(folder / "0" / "phone.jpg", "MPO", save_all=True, append_images=[second])
    assert prepare_images(folder, tmp_path / "out") == 0
    images = [i for split in ("train", "valid") for i in all_images(tmp_path / "out", split)]
    (found,) = [i for i in images if i.name.endswith(".jpg")]
    assert found.data == (folder / "0" / "phone.jpg").read_bytes()
    pixels = np.asarray(decode_rgb(found))
    assert pixels.shape == (8, 16, 3) and np.abs(pixels.astype(int) - (200, 30, 30)).max() < 5
    assert shown(first, save_all=True, append_images=[second]).shape == (8, 16, 3)  # an animated PNG


def test_transparent_parts_are_white() -> None:
    black = np.zeros((1, 3, 4), np.uint8)
    black[0, 1, 3], black[0, 2, 3] = 255, 51  # clear, opaque, a fifth
    expected = [[[255] * 3, [0] * 3, [204] * 3]]
    assert shown(Image.fromarray(black)).tolist() == expected
    assert shown(Image.fromarray(black).convert("LA")).tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert shown(palette, transparency=0).tolist() == [[[255] * 3, [10, 20, 30]]]
    assert shown(palette, transparency=bytes([255, 0])).tolist() == [[[0] * 3, [255] * 3]]
    assert shown(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)).tolist() == [[[255] * 3]]
    assert shown(Image.new("L", (1, 1), 7), transparency=7).tolist() == [[[255] * 3]]
    assert shown(Image.new("1", (1, 1)), transparency=0).tolist() == [[[255] * 3]]
    assert shown(Image.fromarray(np.array([[0, 514]], np.uint16)), transparency=0).tolist() == [[[255] * 3, [2] * 3]]


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_digits(tmp_path / "in", count=30)
    name = os.fsdecode(b"caf\xe9")
    (folder / "1").rename(folder / name)
    (folder / name / os.fsdecode(b"n\xef.png")).write_bytes(b"broken")
    assert prepare_images(folder, tmp_path / "out") == 0
    assert "caf\\xe9" in load_manifest(tmp_path / "out").classes
    capsys.readouterr()
    arguments = ("corpus=images", f"corpus.inputs=[{folder}]", f"output={tmp_path / 'again'}", "num_workers=0")
    program = (sys.executable, "-m", "data_pipeline.prepare")
    found = run_process(*program, *arguments, PYTHONIOENCODING="utf-8:strict")
    assert found.returncode == 0 and "broken images skipped" in found.stdout, found.stderr


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_lone_quotes_lose_no_image(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_digits(tmp_path / "in", count=12)
    files = sorted(folder.rglob("*.png"))
    labels = ['"lone', 'a 5" disc', "plain", '"whole ""quoted"""', 'end"', '"'] * 2
    between = "\t" if kind == "tsv" else ","
    lines = [f"{path}{between}{label}" for path, label in zip(files, labels, strict=True)]
    table = tmp_path / f"list.{kind}"
    table.write_text("\n".join([f"file{between}label", *lines]) + "\n")
    code = prepare_images(table, tmp_path / "out")
    if kind == "csv":  # where quotes have a meaning, one that is not closed is an error
        assert code == 2 and "list.csv cannot be read" in capsys.readouterr().err
        return
    manifest = load_manifest(tmp_path / "out")
    assert sum(s.samples for s in manifest.splits.values()) == 12
    assert set(manifest.classes) == {'"lone', 'a 5" disc', "plain", 'whole "quoted"', 'end"', '"'}


def test_a_class_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scandir = write_digits(tmp_path / "in", count=10), os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("in/3"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the superuser may read everything
    assert prepare_images(folder, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"corpus.inputs: {folder}/3 cannot be read: Permission denied" in said and "output=" not in said


@pytest.mark.parametrize("inner", ["out", "prepared/out"])
def test_the_output_may_lie_in_the_input(tmp_path: Path, inner: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_digits(tmp_path / "in", count=20)
    for hidden in (".git", ".ipynb_checkpoints"):
        (folder / hidden).mkdir()
    (folder / "0" / ".DS_Store").write_bytes(b"")
    assert prepare_images(folder, folder / inner) == 0
    assert "left out: 1 hidden files, 2 hidden folders\n" in capsys.readouterr().out
    assert prepare_images(folder, folder / inner) == 0
    assert "already complete" in capsys.readouterr().out


def test_an_orientation_that_cannot_be_read_turns_nothing() -> None:
    data = io.BytesIO()
    Image.new("RGB", (5, 4)).save(data, "JPEG", exif=b"Exif\0\0no TIFF at all")
    assert decode_rgb(EncodedImage(data.getvalue(), 0, "x")).size == (5, 4)


def test_a_changed_shard_and_a_broken_image_are_named_while_training(prepared: Path, tmp_path: Path) -> None:
    manifest = load_manifest(prepared)
    copy = tmp_path / "copy"
    for name, data in contents(prepared).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    shard = copy / manifest.splits["train"].shards[0].name
    changed = bytearray(shard.read_bytes())
    changed[600] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(InputError, match=r"shard-000000.tar differs from the manifest: sha256"):
        ImageReader(load_manifest(copy), "train").read_document(0, 0, 0)
    broken = EncodedImage(b"no image", 0, "train/shard-000000.tar: train-000000-000003.png")
    with pytest.raises(InputError, match=r"shard-000000.tar: train-000000-000003.png is a broken image"):
        decode_rgb(broken)


def test_the_stream_hands_out_every_image_once_an_epoch(prepared: Path) -> None:
    manifest = load_manifest(prepared)
    count = manifest.splits["train"].samples
    stream = Stream(ImageReader(manifest, "train"), Single(), seed=3, window_blocks=2)
    names, position = [], Position()
    for _ in range(2 * count):
        names.append(stream.sequence(position)[0].name)
        position = stream.advance(position, 1)
    assert position.epoch == 2
    assert len(set(names[:count])) == len(set(names[count:])) == count
    assert names[:count] != names[count:]


def test_partners_are_half_a_window_away_and_each_is_one_once() -> None:
    plan = Single(partner=True).plan(np.ones(6))
    pairs = [tuple(segment.document for segment in plan.segments(i)) for i in range(plan.num_sequences)]
    assert pairs == [(0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)]


@pytest.mark.skipif(not (SHARED / "data/images/clothing_small_160").is_dir(), reason="the photos are not here")
def test_real_photographs(tmp_path: Path) -> None:
    folder = SHARED / "data/images/clothing_small_160/validation"
    assert prepare_images(folder, tmp_path / "out", "valid_fraction=0.2") == 0
    manifest = load_manifest(tmp_path / "out")
    assert "t-shirt" in manifest.classes
    image = all_images(tmp_path / "out", "train")[0]
    assert decode(image.data).format == "JPEG"
