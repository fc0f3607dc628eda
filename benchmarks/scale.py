"""`make bench-scale`: what a checkpoint of gpt2_xl under ZeRO-3 costs each of 64, 256 and 1,024 ranks, simulated in one
process: the code of the ranks runs one after another, in turn, and files of weights have their size alone, except those
of the ranks that are measured. Seconds are of CPU time.

    python -m benchmarks.scale [RANKS ...]
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretraining.models.gpt.config import GPTConfig
from pretraining.models.registry import build_model
from pretraining.models.shapes import MetaLayers
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.fragments import Fragment, Shape
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.replicas import unequal_replicas
from pretraining.parallel.world import World
from pretraining.run import checkpoint
from pretraining.run.agreement import require_equal_replicas, require_ownership
from pretraining.run.checkpoint import Held, Saver
from pretraining.run.checkpoint_format import MANIFEST, Checkpoint, open_checkpoint
from pretraining.run.checkpoint_reader import load_tensors, parts_needed

T = TypeVar("T")
Tensors = list[tuple[Fragment, torch.Tensor]]
GPT2_XL = GPTConfig(name="gpt", hidden_size=1600, num_layers=48, num_heads=25, max_seq_len=1024)
STATE = ("weights", "optimizer.exp_avg", "optimizer.exp_avg_sq")
REPEATS = 5
LARGEST_BLOCKING_SECONDS = 0.2


def main() -> None:
    shapes = {n: tuple(p.shape) for n, p in build_model(GPT2_XL, Vocabulary(50257), MetaLayers()).named_parameters()}
    elements = sum(map(math.prod, shapes.values()))
    print(f"gpt2_xl with AdamW's averages: {elements / 1e9:.2f} billion parameters in {len(shapes)} tensors, ZeRO-3")
    slowest = max(measure(shapes, ranks) for ranks in map(int, sys.argv[1:] or ("64", "256", "1024")))
    if slowest > LARGEST_BLOCKING_SECONDS:
        sys.exit(f"a save blocks training for {slowest:.2f} s, more than {LARGEST_BLOCKING_SECONDS}")


def measure(shapes: dict[str, Shape], ranks: int) -> float:
    """-> the seconds for which the bookkeeping of a save blocks a rank."""
    print(f"\n{ranks} ranks")
    middle = ranks // 2
    real = {0, 1, 2, middle}  # the first ones write what all ranks hold
    with tempfile.TemporaryDirectory() as folder:
        described = [_describe(shapes, ranks, rank, Path(folder), rank in real) for rank in range(ranks)]
        blocking = _save(shapes, ranks, middle, described[middle][1])
        _merge([text for text, _ in described], Path(folder))
        _load(shapes, ranks, middle, open_checkpoint(Path(folder)))
    return blocking


def tensors_of(shapes: dict[str, Shape], ranks: int, rank: int, real: bool) -> Tensors:
    """A rank's, as DeepSpeedEngine.tensors names them under ZeRO-3. real: else they have no memory of their own."""
    found: Tensors = []
    for kind in STATE:
        for name, shape in shapes.items():
            whole = Fragment.whole(f"{kind}.{name}", shape)
            length = -(-whole.stop // ranks)
            start, stop = (min(edge * length, whole.stop) for edge in (rank, rank + 1))
            if start < stop:
                values = torch.full((stop - start,), 1.0) if real else torch.ones(1).expand(stop - start)
                found.append((Fragment(whole.name, shape, whole.box, start, stop, frozenset({Axis.TENSOR})), values))
    for name in ("updates", "loss_scale", "good_steps"):
        found.append(
            (Fragment(f"optimizer.{name}", (), Fragment.whole("", ()).box, 0, 1, frozenset(Axis)), torch.ones(()))
        )
    return found


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Of this thread's CPU time."""
    began = time.thread_time()
    value = work()
    return time.thread_time() - began, value


def median(work: Callable[[], object]) -> float:
    return statistics.median(seconds(work)[0] for _ in range(REPEATS))


def _mesh(ranks: int, rank: int) -> Mesh:
    return Mesh({Axis.DATA: ranks}, {Axis.DATA: rank})


def _describe(shapes: dict[str, Shape], ranks: int, rank: int, folder: Path, real: bool) -> tuple[str, float]:
    """What a rank tells of what it writes, and how long that takes it in the background."""
    held = checkpoint.dealt(tensors_of(shapes, ranks, rank, real), _mesh(ranks, rank))
    share = [Held(fragment, values.reshape(-1)) for fragment, values in held]
    write = partial(checkpoint._write_share, share, folder, f"rank_{rank:05d}")
    if real:
        took, written = seconds(write)
        return json.dumps({"value": written}), took
    with (
        mock.patch("safetensors.torch.save_file", lambda _, path: path.touch()),
        mock.patch.object(checkpoint, "_by_key", lambda _: defaultdict(int)),
        mock.patch.object(checkpoint, "crc32", lambda _: 0),
        mock.patch.object(checkpoint, "sync", lambda _: None),
        mock.patch.object(checkpoint, "write_atomically", Path.write_bytes),
    ):
        return json.dumps({"value": write()}), 0.0


def _save(shapes: dict[str, Shape], ranks: int, rank: int, background: float) -> float:
    tensors = tensors_of(shapes, ranks, rank, real=True)
    saver = Saver(World(rank, ranks, torch.device("cpu"), _mesh(ranks, rank)))
    with mock.patch.object(saver, "_run", lambda *_: None):
        save = median(lambda: saver.save(tensors, {}, Path("never written")))
    dealing = median(lambda: checkpoint.dealt(tensors, _mesh(ranks, rank)))
    checks = _checks(shapes, ranks, rank)
    megabytes = sum(tensor.nbytes for _, tensor in tensors) / 1e6
    print(f"  blocking, each rank: {save + checks:.3f} s, most of it the copy of {megabytes:,.0f} MB of values;")
    print(f"    {dealing:.3f} s to deal out what several ranks hold, {checks:.3f} s to compare owners and replicas")
    print(f"  in the background, each rank: {background:.2f} s with its values' checksums")
    return dealing + checks


def _checks(shapes: dict[str, Shape], ranks: int, rank: int) -> float:
    """Of Trainer.save; the collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    everyone = dist.group.WORLD
    assert everyone is not None
    mesh = Mesh({Axis.DATA: ranks}, {Axis.DATA: rank}, {frozenset({Axis.DATA}): everyone}, everyone, everyone)
    world = World(rank, ranks, torch.device("cpu"), mesh)
    engine = mock.Mock()
    engine.unequal_replicas = lambda: unequal_replicas({name: torch.empty(0) for name in shapes}, mesh)

    def compare() -> None:
        require_ownership(world, None)
        require_equal_replicas(world, engine, True, "now")

    took = median(compare)
    dist.destroy_process_group()
    return took


def _merge(texts: list[str], folder: Path) -> None:
    """As merge_texts has it for ranks of one machine: rank 0 merges at every level of the tree."""
    world, first = World(0, len(texts), torch.device("cpu")), 0.0
    while len(texts) > 1:
        pairs = [texts[number : number + 2] for number in range(0, len(texts), 2)]
        took, merged = seconds(lambda pairs=pairs: checkpoint._merge_texts(world, *pairs[0]))  # type: ignore[misc]
        texts = [merged, *(checkpoint._merge_texts(world, *pair) if len(pair) == 2 else pair[0] for pair in pairs[1:])]
        first += took
    took, failure = seconds(lambda: checkpoint._complete(json.loads(texts[0]), folder, {"step": 1}, world))
    assert not failure, failure
    print(f"  in the background, rank 0: {first + took:.2f} s more for the manifest")


def _load(shapes: dict[str, Shape], ranks: int, rank: int, saved: Checkpoint) -> None:
    sizes = [part["bytes"] for part in saved.manifest["parts"]]
    manifest = (saved.folder / MANIFEST).stat().st_size
    print(f"  the manifest: {manifest / 1e6:.2f} MB, and {len(sizes)} parts of {max(sizes) / 1e6:.2f} MB at most")
    took, _ = seconds(lambda: open_checkpoint(saved.folder))
    tensors = tensors_of(shapes, ranks, rank, real=True)
    load, _ = seconds(lambda: load_tensors(saved, tensors))
    print(f"  a load, each rank: {took:.2f} s to open it, {load:.2f} s to read its own values")
    for name, other in (("the same", ranks), ("half as many", ranks // 2), ("twice as many", 2 * ranks)):
        wanted = [fragment for fragment, _ in tensors_of(shapes, other, other // 2, real=False)]
        numbers = parts_needed(saved, wanted)
        total = (manifest + sum(sizes[number] for number in numbers)) / 1e6
        print(f"  read of it under {name} ranks: {len(numbers)} of the parts, with the manifest {total:.2f} MB")


if __name__ == "__main__":
    main()
