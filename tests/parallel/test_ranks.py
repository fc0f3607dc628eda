"""What ranks say to each other: what is read executes nothing, waits end, copies of weights are compared."""

import math
import os
import pickle
import resource
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from data_pipeline.common.errors import Failure, InputError
from pretraining.build import build, read_inputs
from pretraining.config import load_config
from pretraining.parallel import world as world_module
from pretraining.parallel.host import run_on_all_ranks
from pretraining.parallel.launch import Launch, read_launch
from pretraining.parallel.lost import LostPeer, lost_peer
from pretraining.parallel.meeting import Meeting
from pretraining.parallel.replicas import bits_hash, unequal_replicas
from pretraining.parallel.texts import broadcast_text, gather_texts, merge_texts
from pretraining.run import checkpoint
from pretraining.run.agreement import agree_on_checkpoint, require_equal_replicas, require_same
from pretraining.run.signals import StopRequest
from tests.helpers import TINY, free_port, run_world


class _Shell:
    """A pickle of this runs a command where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def read_a_pickle(world, path):
    if world.rank == 1:  # a stranger in the place of a rank
        merge_texts(pickle.dumps(_Shell(path)).decode("latin-1"), str.__add__, world.mesh.save_group, [0, 1])
        return "sent"
    share = {"value": {"files": {}, "parts": [], "tensors": {}}}
    return "refused" if "Expecting value" in checkpoint._merged(share, world)["error"] else "merged"


def test_bytes_of_a_stranger_execute_nothing(tmp_path):
    assert run_world(2, read_a_pickle, tmp_path / "pwned") == ["refused", "sent"]
    assert not (tmp_path / "pwned").exists()


def announce_too_much(world):
    group = world.mesh.host_group
    if world.rank == 1:
        dist.all_gather([torch.zeros(1, dtype=torch.int64) for _ in range(2)], torch.tensor([1 << 60]), group=group)
        return ""
    try:
        gather_texts("a", group)
    except RuntimeError as error:
        return str(error)


def test_a_length_without_bounds_is_refused():
    assert "none of this program" in run_world(2, announce_too_much)[0]


def announce_too_much_by(world, way):
    group = world.mesh.save_group
    length = torch.tensor([1 << 60])
    if world.rank == (1 if way == "merge" else 0):
        dist.send(length, group=group, group_dst=0) if way == "merge" else dist.broadcast(length, 0, group=group)
        return ""
    try:
        merge_texts("a", str.__add__, group, [0, 1]) if way == "merge" else broadcast_text(None, group)
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("way", ["merge", "broadcast"])
def test_a_length_without_bounds_is_refused_in_a_save(way):
    assert "none of this program" in "".join(run_world(2, announce_too_much_by, way))


@pytest.mark.parametrize(
    ("ranks", "limits", "set_to"),
    [
        (1024, (1024, 1 << 20), 5120),
        (1024, (1024, 3500), 3500),
        (1024, (1024, resource.RLIM_INFINITY), 5120),
        (1024, (1 << 16, 1 << 16), None),
        (2, (1024, 1024), None),
        (1024, (1024, 3072), "1024 ranks need some 3328 open files each, and the limit is 3072"),
    ],
)
def test_open_files_are_allowed_as_many_ranks_need(monkeypatch, ranks, limits, set_to):
    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: calls.append(limit))
    if isinstance(set_to, str):
        with pytest.raises(InputError, match=set_to):
            world_module._allow_sockets(Launch(0, ranks))
    else:
        world_module._allow_sockets(Launch(0, ranks))
        assert calls == ([] if set_to is None else [(set_to, limits[1])])


def groups_of_a_rank(world):
    """-> the group's sizes, and this rank's sockets."""
    sizes = sorted(group.size() for group in distributed_c10d._world.pg_map)
    sockets = sum(os.readlink(file).startswith("socket") for file in Path("/proc/self/fd").iterdir() if file.exists())
    return [sizes, sockets]


@pytest.mark.parametrize(("tensor_parallel", "sizes"), [(1, [4, 4]), (2, [2, 2, 4, 4])])
def test_process_groups_are_few(tensor_parallel, sizes):
    """All ranks, those that save, and the two axes where there are two: megatron-core alone would make seventeen."""
    found = run_world(4, groups_of_a_rank, tensor_parallel=tensor_parallel)
    assert all(each[0] == sizes for each in found)
    assert all(each[1] <= sum(sizes) + 4 + 4 for each in found)  # a listener each, and the meeting point


def test_nothing_in_the_packages_unpickles_what_ranks_send():
    import ast

    from tests.test_house import modules

    names = {
        f"{module}:{node.lineno}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (node.attr.endswith("_object") or node.attr.endswith("_object_list"))
    }
    assert names == set()


def texts_of(world, texts):
    return world.gather_texts(texts[world.rank])


@pytest.mark.parametrize("texts", [("a", None, ""), ("é\n\0", "x" * 100_000, "\udcff")])
def test_texts_arrive_as_they_are(texts):
    assert run_world(3, texts_of, texts) == [list(texts)] * 3


def stores(size, timeout=5.0):
    port = free_port()
    first = dist.TCPStore("127.0.0.1", port, size, is_master=True, wait_for_workers=False)
    others = [dist.TCPStore("127.0.0.1", port, size, wait_for_workers=False) for _ in range(size - 1)]
    return [Meeting(rank, size, store, timeout) for rank, store in enumerate([first, *others])]


def in_threads(meetings, work):
    from concurrent.futures import ThreadPoolExecutor

    def outcome(meeting):
        try:
            return work(meeting)
        except (InputError, LostPeer) as error:
            return error

    with ThreadPoolExecutor(len(meetings)) as pool:
        return list(pool.map(outcome, meetings))


def test_a_meeting_exchanges_texts_without_a_process_group():
    meetings = stores(3)
    for texts in (("a", None, "c"), (None, "é", None)):
        assert in_threads(meetings, lambda m, texts=texts: m.gather_texts(texts[m.rank])) == [list(texts)] * 3


def test_a_rank_that_never_answers_is_named():
    first, second, _ = stores(3, timeout=1.0)
    began = time.monotonic()
    found = in_threads([first, second], lambda m: m.gather_texts("here"))
    assert all(isinstance(error, LostPeer) for error in found) and time.monotonic() - began < 5
    assert str(found[0]) == "rank 2 gave no answer within 1 s"


def test_differences_are_told_by_rank_and_key():
    facts = [{"a": 1, "b": [1]}, {"a": 1, "b": [1]}, {"a": 2, "b": [1, 2], "c": None}]
    for error in in_threads(stores(3), lambda m: require_same(m, facts[m.rank])):
        assert str(error) == (
            "the ranks do not agree. rank 2: a is 2, on rank 0 1; b is [1, 2], on rank 0 [1]; "
            "c is null, on rank 0 missing"
        )
    assert in_threads(stores(2), lambda m: require_same(m, facts[m.rank])) == [None, None]


def test_one_rank_chooses_the_checkpoint():
    """The others do not even look where it chooses none, and do not wait where it finds a fault."""
    asked = []

    def choose():
        asked.append(1)
        raise InputError("none is whole")

    found = in_threads(stores(2), lambda m: agree_on_checkpoint(m, choose))
    assert [str(error) for error in found] == ["none is whole", "rank 0: none is whole"] and len(asked) == 1
    assert in_threads(stores(2), lambda m: agree_on_checkpoint(m, lambda: None)) == [None, None]


def test_what_a_rank_said_of_its_end_is_read_by_the_others():
    first, second, third = stores(3)
    second.note_end("out of memory")
    assert first.ends() == third.ends() == {1: "out of memory"}
    assert Meeting().ends() == {}


def trainer_of(world, *overrides):
    config = load_config(list(overrides), world.size)
    return build(config, read_inputs(config), world, Path(config.run_dir), StopRequest())


def timeouts(world, overrides):
    """Of every group that there is once an engine was built, its own groups included."""
    trainer_of(world, *overrides)
    found = set()
    for group in distributed_c10d._world.pg_map:
        backend = group._get_backend(torch.device("cpu"))
        found.add(backend.options._timeout.total_seconds())
    return len(distributed_c10d._world.pg_map), sorted(found)


@pytest.mark.parametrize(
    "engine, tensor_parallel",
    [
        (("engine=deepspeed", "engine.zero_stage=3"), 1),
        (("engine=megatron", "engine.tensor_parallel=2"), 2),
        (("engine=deepspeed", "engine.zero_stage=1", "engine.tensor_parallel=2"), 2),
    ],
    ids=["zero3", "tp2", "zero1 x tp2"],
)
def test_every_group_has_the_timeout(corpus, tmp_path, engine, tensor_parallel):
    settings = [*TINY, f"data.path={corpus}", f"run_dir={tmp_path / 'r'}", "train.timeout_seconds=17", *engine]
    size = 2 * (tensor_parallel if "deepspeed" in engine[0] else 1)
    for count, found in run_world(size, timeouts, settings, tensor_parallel=tensor_parallel):
        assert count >= 2 and found == [17.0]


def flip(world, overrides, name):
    """One bit of one weight of rank 1 alone."""
    trainer = trainer_of(world, *overrides)
    require_equal_replicas(world, trainer.engine, False, "before")
    if world.rank == 1:
        weight = dict(trainer.engine.module.named_parameters())[f"model.{name}"]
        weight.data.view(-1).view(torch.int32)[3] ^= 1
    try:
        trainer.save()
    except Failure as failure:
        return str(failure), (trainer.record.folder / "checkpoints" / "step_00000000").exists()


@pytest.mark.parametrize(
    "engine, tensor_parallel",
    [
        (("engine=torch",), 1),
        (("engine=torch", "engine.shard_optimizer=true"), 1),
        (("engine=deepspeed", "engine.zero_stage=2"), 1),
        (("engine=megatron", "engine.tensor_parallel=2"), 2),
    ],
    ids=["ddp", "shard_optimizer", "zero2", "tp2"],
)
def test_one_bit_on_one_rank_is_found_before_it_is_saved(corpus, tmp_path, engine, tensor_parallel):
    settings = [*TINY, f"data.path={corpus}", f"run_dir={tmp_path / 'r'}", *engine]
    name = "blocks.0.attention_norm.weight"
    for told, saved in run_world(2, flip, settings, name, tensor_parallel=tensor_parallel):
        assert f"copies of 1 weights are not the same after step 0: {name}, up to" in told and not saved


def train_with_a_bad_gradient(world, overrides, name, bad):
    """At step 3, of a weight that all tensor-parallel ranks hold, on one of them alone."""
    trainer = trainer_of(world, *overrides)
    optimizer = trainer.engine.optimizer
    read, norms = optimizer.read_gradients, []

    def read_and_spoil():
        read()
        norms.append(float(optimizer.grad_norm))  # of the step before
        if len(norms) == 3 and world.rank == 1:
            next(shard for shard in optimizer.shards if shard.fragment.name == name).grad.view(-1)[0] = bad

    optimizer.read_gradients = read_and_spoil
    with trainer.record.tracker:
        trainer.fit()
    return trainer.engine.unequal_replicas(), float(optimizer.updates), norms


@pytest.mark.parametrize(
    "engine, bad",
    [
        (("engine=megatron",), math.inf),
        (("engine=megatron",), 1e30),  # its square is too large
        (("engine=deepspeed", "engine.zero_stage=0"), math.nan),
    ],
)
def test_whether_a_step_is_finite_is_one_decision(corpus, tmp_path, engine, bad):
    settings = [*TINY, f"data.path={corpus}", f"run_dir={tmp_path / 'r'}", "train.steps=5", *engine]
    name = "blocks.0.attention_norm.weight"
    found = run_world(
        2, train_with_a_bad_gradient, [*settings, "engine.tensor_parallel=2"], name, bad, tensor_parallel=2
    )
    for unequal, updates, norms in found:
        assert unequal == {} and updates == 4.0 and not math.isfinite(norms[3])
    assert [n for n in found[0][2] if math.isfinite(n)] == [n for n in found[1][2] if math.isfinite(n)]


def test_the_hash_sees_bits_and_places():
    weights = torch.randn(1000)
    plain = int(bits_hash(weights))
    assert plain == int(bits_hash(weights.clone().view(10, 100)))
    for other in (weights.flip(0), torch.cat([weights[1:2], weights[:1], weights[2:]]), -weights, weights * (1 + 1e-7)):
        assert int(bits_hash(other)) != plain
    assert int(bits_hash(torch.zeros(4))) != int(bits_hash(torch.tensor([0.0, 0, 0, -0.0])))
    assert int(bits_hash(torch.ones(8, dtype=torch.bfloat16))) != int(bits_hash(torch.ones(7, dtype=torch.bfloat16)))
    assert int(bits_hash(torch.empty(0))) == 0


def test_one_process_has_no_copies():
    from pretraining.parallel.mesh import Mesh

    assert unequal_replicas({"a": torch.ones(3)}, Mesh()) == {}


@pytest.mark.parametrize(
    "environment, told",
    [
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 is no rank of WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "x"}, "WORLD_SIZE=x must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "1_0"}, "WORLD_SIZE=1_0 must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "must be a whole number"),
        ({"RANK": "²", "WORLD_SIZE": "2"}, "RANK=² must be a whole number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK= must be a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 is no rank"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4, but RANK is not set"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0, but RANK is not set"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "abc"}, "SLURM_NTASKS=abc must be a whole number"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2(x3)"}, "SLURM_NTASKS=2(x3) must be a whole number"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "is no rank of"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"SLURM_NTASKS": "x"}, "SLURM_NTASKS=x must be a whole number"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "set RANK to OMPI_COMM_WORLD_RANK, WORLD_SIZE to"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4, but RANK"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "PMI_SIZE=2, but RANK is not set"),
        ({"MV2_COMM_WORLD_SIZE": "x"}, "MV2_COMM_WORLD_SIZE=x must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "99999"}, "is no port"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
)
def test_what_a_launcher_says_wrongly_is_told(environment, told):
    with pytest.raises(InputError) as error:
        read_launch(environment)
    assert told in str(error.value) and len(str(error.value)) < 300


def test_what_a_launcher_says_rightly():
    assert read_launch({}) == read_launch({"WORLD_SIZE": "1"}) == read_launch({"SLURM_NTASKS": "1"}) == Launch()
    meeting = {"MASTER_ADDR": "h", "MASTER_PORT": "1"}
    assert read_launch({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", **meeting}).rank == 1
    assert read_launch({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "PMI_SIZE": "2", **meeting}).rank == 1
    assert read_launch({"OMPI_COMM_WORLD_SIZE": "2", "RANK": "1", "WORLD_SIZE": "2", **meeting}).rank == 1
    assert read_launch({"OMPI_COMM_WORLD_SIZE": "1"}) == read_launch({"SLURM_NTASKS": "2"}) == Launch()


@pytest.mark.parametrize("message", ["Connection closed by peer [10.0.0.1]:1", "Timed out waiting 3000ms for recv"])
def test_a_lost_peer_is_known_by_its_error(message):
    assert lost_peer(RuntimeError(f"[gloo/transport/tcp/pair.cc:1] {message}")) is not None
    assert lost_peer(RuntimeError("out of memory")) is None and lost_peer(OSError("disk")) is None
    try:
        try:
            raise RuntimeError(f"[third_party/gloo/x.cc] {message}")
        except RuntimeError as inner:
            raise ValueError("in a layer") from inner
    except ValueError as outer:
        assert message in lost_peer(outer)


def fail_on_one(world):
    def work():
        if world.rank == 1:
            raise InputError("no such folder")
        return 5

    try:
        run_on_all_ranks(world, work)
    except InputError as error:
        return str(error)


def test_an_input_error_on_one_rank_is_raised_on_all():
    assert run_world(2, fail_on_one) == ["rank 1: no such folder", "no such folder"]
