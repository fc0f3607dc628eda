"""Manifests in parts: which rank writes what, what a rank reads of them, and what is not believed."""

import itertools
import json
import re
import shutil
from dataclasses import asdict, replace
from functools import reduce

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from pretraining.parallel.copies import dealt
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.launch import Launch
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.texts import broadcast_text, merge_texts
from pretraining.parallel.world import start_world
from pretraining.run import checkpoint_reader
from pretraining.run.checkpoint import Saver
from pretraining.run.checkpoint_format import Manifest, newest_checkpoint, open_checkpoint, problem_of
from pretraining.run.checkpoint_pieces import Pieces, joined
from pretraining.run.checkpoint_reader import load_tensors, parts_needed
from tests.helpers import run_world
from tests.run.old_checkpoints import as_format_1, write_format_1
from tests.run.test_checkpoint import SHAPES, cut, save_world, value

RANKS = 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "step_00000003"
    run_world(RANKS, save_world, folder, RANKS)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints" / written.name)


def load(folder, part=0, parts=1):
    wanted = cut(SHAPES, part, parts)
    blank = [(fragment, torch.full_like(tensor, -1)) for fragment, tensor in wanted]
    load_tensors(open_checkpoint(folder), blank)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(wanted, blank, strict=True))


# Who writes what


def split(shape, tensor_parts, rank, data_parts, place):
    """A fragment as ZeRO 3 and tensor parallelism along the last dimension make it."""
    size = (*shape[:-1], shape[-1] // tensor_parts)
    box = Box((*(0,) * (len(shape) - 1), rank * size[-1]), size)
    length = -(-box.numel // data_parts)
    start, stop = min(place * length, box.numel), min((place + 1) * length, box.numel)
    return Fragment("x", shape, box, start, stop)


def split_anywhere(shape, rng):
    """As ZeRO 1 and 2 do, whose partitions begin and end anywhere in a tensor."""
    whole = Fragment.whole("x", shape)
    cuts = sorted({0, whole.stop, *map(int, rng.integers(0, whole.stop + 1, 4))})
    return [replace(whole, start=start, stop=stop) for start, stop in itertools.pairwise(cuts)]


def everywhere(sizes):
    for data in range(sizes[Axis.DATA]):
        for tensor in range(sizes[Axis.TENSOR]):
            yield Mesh(sizes, {Axis.DATA: data, Axis.TENSOR: tensor})


@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (5, 1), (1, 3), (4, 2)])
def test_what_several_ranks_hold_is_written_once_by_ranks_in_turn(data, tensor):
    sizes = {Axis.DATA: data, Axis.TENSOR: tensor}
    kinds = {"all": frozenset(Axis), "data": frozenset({Axis.DATA}), "tensor": frozenset({Axis.TENSOR})}
    written = []
    for mesh in everywhere(sizes):
        held = []
        for kind, copied_over in {**kinds, "none": frozenset()}.items():
            for number in range(8):
                own = tuple(mesh.rank(axis) for axis in Axis if axis not in copied_over)
                fragment = replace(Fragment.whole(f"{kind}{number}{own}", (4,)), copied_over=copied_over)
                held.append((fragment, mesh))
        written.append([fragment.name for fragment, _ in dealt(held, mesh)])
    names = [name for names in written for name in names]
    assert len(names) == len(set(names)) == 8 * (1 + data + tensor + data * tensor)
    assert max(map(len, written)) - min(map(len, written)) <= 3


def test_a_statistic_of_a_whole_tensor_is_written_where_the_tensor_begins():
    parts = [Fragment("a", (4,), Box((0,), (4,)), start, start + 2) for start in (0, 2)]
    statistics = [replace(Fragment.whole("row", (1,)), part=part) for part in parts]
    assert [len(dealt([(one, None)], Mesh())) for one in statistics] == [1, 0]
    halves = [Fragment("a", (4, 2), Box((0, column), (4, 1)), 0, 4) for column in (0, 1)]
    assert [len(dealt([(replace(Fragment.whole("row", (1,)), part=h), None)], Mesh())) for h in halves] == [1, 0]


def texts_along_a_tree(world, order):
    group = world.mesh.save_group
    merged = merge_texts(f"{world.rank}", lambda a, b: f"({a} {b})", group, order)
    return [merged, broadcast_text("é" if world.is_main else None, group), broadcast_text("", group)]


def test_texts_are_merged_in_the_order_of_ranks():
    found = run_world(5, texts_along_a_tree, [0, 2, 4, 1, 3])
    assert found[0][0] == "(((0 2) (4 1)) 3)"
    assert [each[0] for each in found[1:]] == [None] * 4
    assert all(each[1:] == ["é", ""] for each in found)


def save_badly(world, folder, fragments):
    saver = Saver(world)
    held = [(fragment, torch.ones(fragment.numel)) for fragment in fragments[world.rank]]
    saver.save(held, {}, folder)
    return [saver.wait(), saver.reason, folder.exists() and world.is_main]  # which removes it after it told the others


def test_what_is_written_twice_or_by_nobody_fails_the_save(tmp_path):
    whole, other = Fragment.whole("a", (4,)), Fragment.whole("b", (4, 2))
    cases = {
        "a: its boxes overlap": ([whole], [whole]),
        "a: 1 of its elements are written by no rank": ([replace(whole, stop=2)], [replace(whole, start=3)]),
        "a: its pieces overlap at element 2": ([replace(whole, stop=3)], [replace(whole, start=2)]),
        r"a is \[4\] on one rank and \[4, 2\] on another": ([whole], [other.renamed("a")]),
    }
    for told, fragments in cases.items():
        for found in run_world(2, save_badly, tmp_path / "c", fragments):
            assert not found[0] and re.search(told, found[1]) and not found[2]


# What the manifest says of the parts


def test_a_tensor_that_is_cut_evenly_is_one_line(written):
    manifest = open_checkpoint(written).manifest
    assert [part["file"] for part in manifest["parts"]] == [f"rank_{rank:05d}.json" for rank in range(RANKS)]
    assert {name: len(tensor["pieces"]) for name, tensor in manifest["tensors"].items()} == {
        "a": 1,
        "b": 1,
        "c": 1,
        "scalar": 0,  # rank 0 has all of it
    }
    assert [len(tensor["boxes"]) for tensor in manifest["tensors"].values()] == [0, 0, 0, 1]


@pytest.mark.parametrize("evenly", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_pieces_lead_to_the_parts_that_hold_what_is_asked(seed, evenly):
    """Against every rank's own boxes, for any cut and any order in which the ranks' pieces are joined."""
    rng = np.random.default_rng(seed)
    tensor_parts, data_parts = (int(rng.integers(1, 4)) for _ in range(2))
    shape = (*map(int, rng.integers(1, 6, rng.integers(0, 3))), int(rng.integers(1, 5)) * tensor_parts)
    places = [(t, d) for t in range(tensor_parts) for d in range(data_parts)]
    fragments = (
        [split(shape, tensor_parts, t, data_parts, d) for t, d in places] if evenly else split_anywhere(shape, rng)
    )
    fragments = [fragment for fragment in fragments if fragment.numel]
    groups = [([asdict(Pieces.of(fragment))], 1) for fragment in fragments]
    while len(groups) > 1:
        at = int(rng.integers(0, len(groups) - 1))
        (one, few), (other, more) = groups[at : at + 2]
        groups[at : at + 2] = [(joined(one, other, few), few + more)]
    pieces = [Pieces(**values) for values in groups[0][0]]
    assert not evenly or len(pieces) <= 2 * tensor_parts
    for part, fragment in enumerate(fragments):
        boxes = [box for one in pieces if part in one.parts for box in one.boxes(part)]
        assert boxes == [box for box, _ in fragment.boxes()]
    tensors = {"x": {"shape": list(shape), "boxes": [], "pieces": [asdict(one) for one in pieces]}}
    assert problem_of(manifest_of(tensors, len(fragments)), complete=True) is None
    for _ in range(20):
        offset = [int(rng.integers(0, n)) for n in shape]
        size = [int(rng.integers(1, n - o + 1)) for n, o in zip(shape, offset, strict=True)]
        wanted = Box(tuple(offset), tuple(size))
        named = {part for one in pieces for part in one.parts_of(wanted)}
        holding = {p for p, f in enumerate(fragments) if any(box.intersect(wanted) for box, _ in f.boxes())}
        assert holding <= named


def manifest_of(tensors, parts):
    listed = [{"file": f"rank_{n:05d}.json", "bytes": 1, "sha256": ""} for n in range(parts)]
    values = {"format": 2, "state": {}, "files": {}, "tensors": tensors, "parts": listed}
    import pydantic

    return pydantic.TypeAdapter(Manifest).validate_python(values)


def test_a_rank_reads_its_own_part_alone(folder, monkeypatch):
    checkpoint = open_checkpoint(folder)
    fragments = [fragment for fragment, _ in cut(SHAPES, 1, RANKS)]
    assert parts_needed(checkpoint, fragments) == [1]
    (folder / "rank_00002.json").write_text("")  # nobody looks
    monkeypatch.setattr(checkpoint_reader, "require_plain_file", lambda path: read.append(path.name))
    read = []
    blank = [(fragment, torch.full((fragment.numel,), -1.0)) for fragment in fragments]
    load_tensors(checkpoint, blank)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(cut(SHAPES, 1, RANKS), blank, strict=True))
    assert read == ["rank_00001.safetensors"]


# What is not believed


def change(folder, edit):
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest, manifest["tensors"]["a"]["pieces"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def of_piece(**values):
    return lambda manifest, pieces: pieces[0].update(values)


def of_part(**values):
    return lambda manifest, pieces: manifest["parts"][0].update(values)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (of_piece(count=4), "a: its pieces leave their box: 4 of 12 elements from 0 on"),
        (of_piece(count=10**17), "a: its pieces leave their box"),
        (of_piece(length=1, count=4), "a: a piece lies in part 3, which is none of 3"),
        (of_piece(part=1), "a: a piece lies in part 3"),
        (of_piece(part=-1), "pieces.0.part: Input should be greater than or equal to 0"),
        (of_piece(length=0), "pieces.0.length: Input should be greater than or equal to 1"),
        (of_piece(count=0), "pieces.0.count"),
        (of_piece(start="0"), "pieces.0.start"),
        (of_piece(start=1 << 61), "pieces.0.start"),
        (of_piece(size=[6, 7]), "a: the piece of size [6, 7] at [0, 0] leaves the shape [5, 7]"),
        (of_piece(size=[0, 7]), "a: the piece of size [0, 7]"),
        (of_piece(offset=[0]), "a: a piece of 2 dimensions"),
        (lambda m, pieces: pieces.append(pieces[0]), "a: its pieces overlap at element 0"),
        (lambda m, pieces: pieces.append({**pieces[0], "size": [5, 6]}), "a: its pieces overlap"),
        (lambda m, pieces: pieces.extend(pieces * 100_000), "a: its pieces overlap"),
        (lambda m, pieces: m["tensors"]["a"].update(boxes=m["tensors"]["scalar"]["boxes"]), "a box of 0 dimensions"),
        (lambda m, pieces: m["parts"].pop(), "a: a piece lies in part 2, which is none of 2"),
        (lambda m, pieces: m.pop("parts"), "a: a piece lies in part 2, which is none of 0"),
        (of_part(bytes=5), "bytes, expected 5 bytes: the checkpoint is truncated"),
        (of_part(bytes=1 << 40), "parts.0.bytes: Input should be less than"),
        (of_part(file="../x.json"), "'../x.json' is not the name of a file of a checkpoint"),
        (of_part(file="/etc/passwd"), "is not the name of a file"),
        (of_part(file="rank_00009.json"), "rank_00009.json: missing"),
        (of_part(file=3), "parts.0.file"),
    ],
)
def test_a_manifest_of_parts_is_not_believed(folder, edit, told):
    change(folder, edit)
    with pytest.raises(InputError, match=re.escape(told)):
        open_checkpoint(folder)
    assert newest_checkpoint(folder.parent) is None


def test_pieces_that_leave_a_hole_are_told(folder):
    change(folder, of_piece(count=2))
    with pytest.raises(InputError, match="cover 24 of 35 elements of a"):
        load(folder)


def seal(folder, edit):
    """Changes a part, and the manifest to fit it."""
    path = folder / "rank_00001.json"
    part = json.loads(path.read_text())
    edit(part, part["tensors"]["a"])
    reseal(folder, json.dumps(part).encode())


def reseal(folder, data):
    import hashlib

    (folder / "rank_00001.json").write_bytes(data)
    sealed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(folder, lambda manifest, _: manifest["parts"][1].update(sealed))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda part, boxes: boxes.pop(), "a: its boxes are not those that the manifest says it has"),
        (lambda part, boxes: boxes.append(boxes[0]), "a: its boxes are not those"),
        (lambda part, boxes: boxes[0].update(offset=[0, 0]), "a: its boxes are not those"),
        (lambda part, boxes: boxes[0].update(size=[5, 7]), "a: its boxes are not those"),
        (lambda part, boxes: part["tensors"].pop("a"), "a: its boxes are not those"),
        (lambda part, boxes: boxes[0].update(file="../x.safetensors"), "a: a box lies in a file that is none"),
        (lambda part, boxes: boxes[0].update(file="rank_00000.safetensors"), "is damaged"),
        (lambda part, boxes: boxes[0].update(key="x"), "is damaged"),
        (lambda part, boxes: boxes[0].update(crc32=1), "is damaged (checksum differs)"),
        (lambda part, boxes: boxes[0].update(size=["5", 7]), "not a part of a manifest"),
        (lambda part, boxes: part.pop("tensors"), "not a part of a manifest"),
    ],
)
def test_a_part_is_not_believed(folder, edit, told):
    seal(folder, edit)
    with pytest.raises(InputError, match=re.escape(told)):
        load(folder)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 10_000, b'{"tensors": 1}', b"\xff", b'{"a": NaN}'])
def test_a_part_that_is_none_is_named(folder, data):
    reseal(folder, data)
    with pytest.raises(InputError, match=r"rank_00001.json is not a part of a manifest"):
        load(folder)


def test_damage_to_a_part_is_named(folder):
    path = folder / "rank_00001.json"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rank_00001.json is damaged \(checksum differs\)"):
        load(folder)
    load(folder, 0, RANKS)  # whose own part is whole
    path.write_bytes(data[:-1])
    assert newest_checkpoint(folder.parent) is None
    path.unlink()
    path.symlink_to(folder / "rank_00000.json")
    with pytest.raises(InputError, match="not a plain file"):
        open_checkpoint(folder)


# Format 1


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_format_1_loads_into_any_layout(tmp_path, writers, readers):
    write_format_1(tmp_path / "c", [cut(SHAPES, rank, writers) for rank in range(writers)], {"step": 3})
    assert open_checkpoint(tmp_path / "c").state == {"step": 3}
    for rank in range(readers):
        load(tmp_path / "c", rank, readers)


def test_the_stand_in_for_format_1_writes_what_it_wrote(folder, tmp_path):
    """as_format_1 is what tests of whole runs use."""
    as_format_1(folder)
    write_format_1(tmp_path / "c", [cut(SHAPES, rank, RANKS) for rank in range(RANKS)], {"step": 3})
    assert {f.name: f.read_bytes() for f in folder.glob("*.safetensors")}.keys() == {
        f.name for f in (tmp_path / "c").glob("*.safetensors")
    }
    ours, theirs = (json.loads((f / "manifest.json").read_text()) for f in (folder, tmp_path / "c"))
    assert ours == theirs
    load(folder)


def test_one_rank_writes_one_manifest(tmp_path):
    save_world(start_world(Launch()), tmp_path / "c", 1)
    assert sorted(f.name for f in (tmp_path / "c").iterdir()) == ["manifest.json", "rank_00000.safetensors"]
    total = reduce(lambda a, b: a + b, (int(value(name).numel()) for name in SHAPES))
    assert total == sum(int(np.prod(t["shape"])) for t in open_checkpoint(tmp_path / "c").tensors.values())
