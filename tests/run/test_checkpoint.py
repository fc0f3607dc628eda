import json
import math
import os
import random
import re
import shutil
import threading
import time
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.launch import Launch
from pretraining.parallel.mesh import Axis
from pretraining.parallel.world import start_world
from pretraining.run import checkpoint as checkpoint_module
from pretraining.run import checkpoint_format
from pretraining.run.checkpoint import Saver
from pretraining.run.checkpoint_format import checkpoint_folder, newest_checkpoint, open_checkpoint
from pretraining.run.checkpoint_reader import crc32, load_tensors, not_finite
from pretraining.run.retention import prune_checkpoints, set_aside_newer
from tests.helpers import clean_processes, run_world

SHAPES = {"a": (5, 7), "b": (13,), "c": (2, 3, 4), "scalar": ()}


def value(name):
    shape = SHAPES[name]
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape) + len(name)


def cut(names, part, parts):
    """Each tensor's flat range of one of `parts` ranks."""
    pieces = []
    for name in names:
        whole, flat = Fragment.whole(name, SHAPES[name]), value(name).reshape(-1)
        size = -(-len(flat) // parts)
        start, stop = min(part * size, len(flat)), min((part + 1) * size, len(flat))
        pieces.append((Fragment(name, whole.shape, whole.box, start, stop), flat[start:stop].clone()))
    return pieces


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4), (3, 1, 2, 2), ()])
def test_a_flat_range_is_its_boxes(shape):
    whole = torch.arange(int(np.prod(shape))).reshape(shape)
    box = Box((0,) * len(shape), shape)
    for start in range(whole.numel() + 1):
        for stop in range(start, whole.numel() + 1):
            found = []
            for part, begin in Fragment("x", shape, box, start, stop).boxes():
                assert begin == len(found)
                found += whole[part.slices_of(box)].reshape(-1).tolist()
            assert found == list(range(start, stop))


def save_world(world, folder, parts):
    tensors = (
        cut(SHAPES, world.rank, parts)
        if parts > 1
        else [(replace(Fragment.whole(n, s), copied_over=frozenset(Axis)), value(n).clone()) for n, s in SHAPES.items()]
    )
    saver = Saver(world)
    saver.save(tensors, {"step": 3}, folder)
    saver.wait()


@pytest.mark.parametrize("writers, parts", [(1, 1), (2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_any_layout_loads_any_other(tmp_path, writers, parts, readers):
    run_world(writers, save_world, tmp_path / "c", parts)
    checkpoint = open_checkpoint(tmp_path / "c")
    for rank in range(readers):
        wanted = cut(SHAPES, rank, readers)
        blank = [(fragment, torch.full_like(tensor, -1)) for fragment, tensor in wanted]
        load_tensors(checkpoint, blank)
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(wanted, blank, strict=True))


def test_replicated_boxes_are_written_once(tmp_path):
    run_world(2, save_world, tmp_path / "c", 1)
    files = open_checkpoint(tmp_path / "c").manifest["files"]
    assert len(files) == 2
    assert all(len(t["boxes"]) == 1 for t in open_checkpoint(tmp_path / "c").manifest["tensors"].values())


@pytest.fixture
def saved(tmp_path):
    for step in (1, 2, 3):
        folder = checkpoint_folder(tmp_path, step)
        save_world(start_world(Launch()), folder, 1)
    return tmp_path / "checkpoints"


def test_newest_skips_what_is_not_whole_and_says_so(saved, capsys):
    (saved / "step_00000003" / "manifest.json").unlink()
    file = saved / "step_00000002" / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert newest_checkpoint(saved).folder.name == "step_00000001"
    said = capsys.readouterr().err
    assert "step_00000003" in said and "manifest.json is missing" in said
    assert "step_00000002" in said and "truncated" in said


FORM = '"format": 1, "state": {}, "files": {}'


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "{",
        '{"format": 1}',
        "\x00",
        '{"format": 1, "state": {}, "files": []}',
        f'{{{FORM}, "tensors": {{"a": {{"shape": [1], "boxes": [{{"key": "a"}}]}}}}}}',
    ],
)
def test_newest_skips_a_broken_manifest(saved, text):
    (saved / "step_00000003" / "manifest.json").write_text(text)
    assert newest_checkpoint(saved).folder.name == "step_00000002"


def test_folders_of_other_names_are_left_alone(saved):
    shutil.copytree(saved / "step_00000003", saved / "step_00000003_backup")
    assert newest_checkpoint(saved).folder.name == "step_00000003"
    prune_checkpoints(saved, 1, 0)
    set_aside_newer(saved, None)
    assert sorted(f.name for f in saved.iterdir()) == ["abandoned_step_00000003", "step_00000003_backup"]


def test_none_where_nothing_is_whole(saved):
    for folder in saved.iterdir():
        (folder / "rank_00000.safetensors").unlink()
    assert newest_checkpoint(saved) is None


def test_damage_and_mismatch_are_told(saved):
    checkpoint = open_checkpoint(saved / "step_00000003")
    with pytest.raises(InputError, match="no tensor x"):
        load_tensors(checkpoint, [(Fragment.whole("x", (2,)), torch.zeros(2))])
    with pytest.raises(InputError, match=r"b is \[13\]"):
        load_tensors(checkpoint, [(Fragment.whole("b", (2,)), torch.zeros(2))])
    file = saved / "step_00000003" / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="checksum"):
        load_tensors(checkpoint, [(Fragment.whole(n, s), torch.zeros(s)) for n, s in SHAPES.items()])


def test_boxes_that_leave_a_hole_are_told(saved):
    path = saved / "step_00000003" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"]["b"]["boxes"] = []
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="cover 0 of 13"):
        load_tensors(open_checkpoint(path.parent), [(Fragment.whole("b", (13,)), torch.zeros(13))])


def change_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest, manifest["tensors"]["a"]["boxes"])
    path.write_text(json.dumps(manifest))


def halves(size):
    """Boxes of [5, 7] that are of `size` rows each."""
    return lambda manifest, boxes: boxes.append({**boxes[0], "size": [size, 7]}) or boxes[0].update(size=[size, 7])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (halves(2), "a: its boxes overlap"),  # their sizes add up to less than the tensor's, and cover two rows of it
        (halves(5), "a: its boxes overlap"),
        (lambda m, boxes: boxes[0].update(offset=[1, 0]), "leaves the shape"),
        (lambda m, boxes: boxes[0].update(offset=[0], size=[35]), "a box of 1 dimensions in a tensor of 2"),
        (lambda m, boxes: boxes[0].update(size=[-5, -7]), "boxes.0.size.0: Input should be greater than or equal to 0"),
        (lambda m, boxes: boxes[0].update(size=[5.0, 7]), "boxes.0.size.0"),
        (lambda m, boxes: boxes[0].update(offset=["0", 0]), "boxes.0.offset.0"),
        (lambda m, boxes: boxes[0].update(file="../w.safetensors"), "none of the checkpoint's files"),
        (lambda m, boxes: boxes[0].update(file="/w.safetensors"), "none of the checkpoint's files"),
        (lambda m, boxes: boxes[0].update(file=7), "boxes.0.file"),
        (lambda m, boxes: m["files"].update({"../w.safetensors": 1}), "not the name of a file of a checkpoint"),
        (lambda m, boxes: m["files"].update({"/etc/passwd": 1}), "not the name of a file of a checkpoint"),
        (lambda m, boxes: m["files"].update({"w.safetensors": 1}), "w.safetensors: missing, expected 1 bytes"),
        (lambda m, boxes: m["files"].update({"rank_00000.safetensors": "1"}), "files.rank_00000.safetensors"),
        (lambda m, boxes: m["tensors"].update(a={"shape": [5, 7]}), "boxes"),
    ],
)
def test_a_manifest_is_not_believed(saved, change, told):
    folder = saved / "step_00000003"
    change_manifest(folder, change)
    with pytest.raises(InputError, match=re.escape(told)):
        open_checkpoint(folder)
    assert newest_checkpoint(saved).folder.name == "step_00000002"


def test_any_boxes_are_seen_to_overlap():
    """Against counting elements."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        boxes, counts = [], np.zeros((4, 3, 3), int)
        for _ in range(rng.integers(1, 5)):
            offset = [int(rng.integers(0, n)) for n in counts.shape]
            size = [int(rng.integers(0, n - o + 1)) for n, o in zip(counts.shape, offset, strict=True)]
            boxes.append(Box(tuple(offset), tuple(size)))
            counts[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))] += 1
        assert checkpoint_format._overlap(boxes) == bool((counts > 1).any())


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "manifest.json"])
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_plain_file_is_named(saved, tmp_path, name, kind):
    path = saved / "step_00000003" / name
    path.rename(tmp_path / name)
    if kind == "link":
        path.symlink_to(tmp_path / name)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(InputError, match=f"{name} is not a plain file"):
        open_checkpoint(path.parent)


def test_a_folder_that_is_a_link_is_no_checkpoint_of_the_run(saved, tmp_path):
    (saved / "step_00000003").rename(tmp_path / "elsewhere")
    (saved / "step_00000003").symlink_to(tmp_path / "elsewhere")
    assert newest_checkpoint(saved).folder.name == "step_00000002"
    prune_checkpoints(saved, 1, 0)
    set_aside_newer(saved, 2)
    assert sorted(f.name for f in (tmp_path / "elsewhere").iterdir()) == ["manifest.json", "rank_00000.safetensors"]
    assert (saved / "abandoned_step_00000003").is_symlink()  # out of the way of a save
    assert open_checkpoint(saved / "abandoned_step_00000003").state == {"step": 3}  # who names it may


def save_as_a_stranger(folder, tensor):
    """A checkpoint of weights.a, [5, 7], that holds `tensor` instead, with its right size and checksum."""
    from safetensors.torch import save_file

    folder.mkdir()
    file = folder / "rank_00000.safetensors"
    save_file({"k": tensor}, file)
    box = {"offset": [0, 0], "size": [5, 7], "file": file.name, "key": "k", "crc32": crc32(tensor)}
    tensors = {"weights.a": {"shape": [5, 7], "boxes": [box]}}
    manifest = {"format": 1, "state": {}, "files": {file.name: file.stat().st_size}, "tensors": tensors}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(1, 7), r"\[1, 7\] of torch.float32, and should be \[5, 7\]"),
        (torch.ones(6, 7), r"\[6, 7\] of"),
        (torch.ones(35), r"\[35\] of"),
        (torch.ones(5, 7, dtype=torch.int32), "torch.int32, and should be"),
        (torch.ones(5, 7, dtype=torch.float64), "torch.float64, and should be"),
        (torch.ones(5, 7, dtype=torch.bfloat16), "torch.bfloat16, and should be"),
        (torch.full((5, 7), math.nan), "weights.a holds values that are not finite"),
        (torch.full((5, 7), -math.inf), "weights.a holds values that are not finite"),
    ],
)
def test_a_stored_tensor_is_what_the_manifest_says_and_finite(tmp_path, tensor, told):
    checkpoint = save_as_a_stranger(tmp_path / "c", tensor)
    with pytest.raises(InputError, match=told):
        load_tensors(checkpoint, [(Fragment.whole("weights.a", (5, 7)), torch.zeros(5, 7))])


def test_averages_may_be_infinite_and_not_nan():
    """A squared gradient may exceed fp32."""
    tensors = {
        "weights.nan": torch.tensor([1.0, math.nan]),
        "weights.inf": torch.tensor([[-math.inf], [1.0]]),
        "optimizer.exp_avg_sq.a": torch.tensor([math.inf]),
        "optimizer.exp_avg.a": torch.tensor([math.inf, math.nan]),
        "weights.largest": torch.full((9,), torch.finfo(torch.float32).max),
        "weights.none": torch.zeros(0),
        "optimizer.updates": torch.tensor(3.0),
    }
    named = [(Fragment.whole(name, tuple(tensor.shape)), tensor) for name, tensor in tensors.items()]
    assert not_finite(named) == ["weights.nan", "weights.inf", "optimizer.exp_avg.a"]


def test_a_newer_format_is_refused(saved):
    """Nor is it skipped for an older checkpoint: what the later version trained would be lost."""
    path = saved / "step_00000003" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(InputError, match="newer than this version"):
        newest_checkpoint(saved)
    with pytest.raises(InputError, match="format 99 is newer"):
        open_checkpoint(path.parent)


def test_pruning_keeps_the_last_and_every_nth(tmp_path):
    for step in range(1, 8):
        save_world(start_world(Launch()), checkpoint_folder(tmp_path, step), 1)
    prune_checkpoints(tmp_path / "checkpoints", keep_last=2, keep_every=3)
    assert sorted(int(f.name[5:]) for f in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]


def save_for_ever(folder):
    """Saves step 1, 2, 3, ...: every value of a checkpoint is its step."""
    saver, step = Saver(start_world(Launch())), 0
    while True:
        step += 1
        tensors = [(Fragment.whole(f"t{i}", (64, 1024)), torch.full((64, 1024), float(step))) for i in range(8)]
        saver.save(
            tensors,
            {"step": step},
            checkpoint_folder(folder, step),
            lambda: prune_checkpoints(folder / "checkpoints", 2, 0),
        )


def test_sigkill_at_random_moments_leaves_a_whole_checkpoint(tmp_path, capsys):
    """20 of 20."""
    rng = random.Random(0)
    for turn in range(20):
        folder = tmp_path / str(turn)
        process = clean_processes().Process(target=save_for_ever, args=(folder,))
        process.start()
        while not (folder / "checkpoints" / "step_00000002" / "manifest.json").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        newest = newest_checkpoint(folder / "checkpoints")
        step = newest.state["step"]
        folders = sorted(int(f.name[5:]) for f in (folder / "checkpoints").iterdir())
        assert step in folders[-2:]
        tensors = [(Fragment.whole(f"t{i}", (64, 1024)), torch.zeros(64, 1024)) for i in range(8)]
        load_tensors(newest, tensors)
        assert all((tensor == step).all() for _, tensor in tensors)
        shutil.rmtree(folder)


def test_a_save_that_fails_is_told_and_the_next_one_works(tmp_path, capsys):
    (tmp_path / "checkpoints").write_text("in the way")
    save_world(start_world(Launch()), checkpoint_folder(tmp_path, 1), 1)
    assert "could not be saved" in capsys.readouterr().err
    (tmp_path / "checkpoints").unlink()
    save_world(start_world(Launch()), checkpoint_folder(tmp_path, 2), 1)
    assert newest_checkpoint(tmp_path / "checkpoints").folder.name == "step_00000002"


def test_whoever_may_read_the_folder_may_read_its_files(saved):
    modes = {f.stat().st_mode & 0o777 for f in (saved / "step_00000003").iterdir()}
    assert modes == {(saved / "step_00000003").stat().st_mode & 0o666}


@pytest.mark.parametrize("part", ["_write_share", "_write_manifest"])
def test_a_save_that_fails_leaves_nothing_on_a_full_disk(tmp_path, capsys, monkeypatch, part):
    def full(*_):
        raise OSError("No space left on device")

    saver = Saver(start_world(Launch()))
    monkeypatch.setattr(checkpoint_module, part, full)
    saver.save([(Fragment.whole("a", (4,)), torch.ones(4))], {}, checkpoint_folder(tmp_path, 1))
    assert not saver.wait() and list((tmp_path / "checkpoints").iterdir()) == []
    assert "step_00000001 could not be saved: rank 0: No space left" in capsys.readouterr().err
    monkeypatch.undo()
    saver.save([(Fragment.whole("a", (4,)), torch.ones(4))], {}, checkpoint_folder(tmp_path, 2))
    assert saver.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_whose_thread_dies_has_failed(tmp_path, monkeypatch):
    def lost(*_):
        raise RuntimeError("a rank is gone")

    saver = Saver(start_world(Launch()))
    saver.save([(Fragment.whole("a", (4,)), torch.ones(4))], {}, checkpoint_folder(tmp_path, 1))
    assert saver.wait()
    monkeypatch.setattr(checkpoint_module, "_save", lost)
    saver.save([], {}, checkpoint_folder(tmp_path, 2))
    assert not saver.wait()


def one_rank_fails(world, folder):
    whole = checkpoint_module._write_share

    def write(*arguments):
        if world.rank == 1:
            raise OSError("No space left on device")
        return whole(*arguments)

    saver = Saver(world)
    with mock.patch.object(checkpoint_module, "_write_share", write):
        saver.save([(Fragment.whole("a", (4,)), torch.ones(4))], {}, checkpoint_folder(folder, 1))
        assert not saver.wait()
    assert not checkpoint_folder(folder, 1).exists() or world.rank


def test_what_one_rank_cannot_save_no_rank_calls_saved(tmp_path):
    run_world(2, one_rank_fails, tmp_path)


def test_training_waits_for_the_copy_alone(tmp_path, monkeypatch):
    """What is trained on after save() returned does not reach the checkpoint."""
    writing = threading.Event()
    original = checkpoint_module._write_share

    def slow(*arguments):
        writing.wait(10)
        return original(*arguments)

    monkeypatch.setattr(checkpoint_module, "_write_share", slow)
    saver, tensor = Saver(start_world(Launch())), torch.ones(4)
    saver.save([(Fragment.whole("a", (4,)), tensor)], {"step": 1}, tmp_path / "c")
    tensor += 1
    writing.set()
    saver.wait()
    loaded = torch.zeros(4)
    load_tensors(open_checkpoint(tmp_path / "c"), [(Fragment.whole("a", (4,)), loaded)])
    assert (loaded == 1).all()
