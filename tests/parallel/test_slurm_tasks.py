"""What SLURM gives a task: its place among the ranks, its GPU, its cores."""

import os
from types import SimpleNamespace

import pytest
import torch

from data_pipeline.common.errors import InputError
from pretraining.parallel.launch import Launch, read_launch
from pretraining.parallel.meeting import Meeting
from pretraining.parallel.world import find_device, require_own_devices, threads_of

JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
MEETING = {"MASTER_ADDR": "h", "MASTER_PORT": "1"}


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967290"}, {"SLURM_STEP_ID": "4294967291"}])
def test_the_shell_of_a_job_is_no_rank(step):
    """sbatch's has no step, those of salloc and of a batch step have one of the highest numbers."""
    assert read_launch({**JOB, **step}) == read_launch({**JOB, **step, **MEETING}) == Launch()


def test_a_task_of_srun_is_a_rank():
    assert read_launch({**JOB, **MEETING, "SLURM_STEP_ID": "0"}).size == 4
    assert read_launch({**JOB, **MEETING, "SLURM_STEP_ID": "12", "SLURM_PROCID": "3"}).rank == 3
    with pytest.raises(InputError, match="MASTER_ADDR and MASTER_PORT are not set"):
        read_launch({**JOB, "SLURM_STEP_ID": "0"})


def test_torchrun_within_a_step_rules():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert read_launch({**JOB, **MEETING, **torchrun, "SLURM_STEP_ID": "0"}) == Launch(5, 8, 1, 4)


@pytest.fixture
def gpus(monkeypatch):
    """A host of the GPUs with these uuids, as this process sees it."""

    def have(*uuids):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[device.index])
        )

    return have


def test_a_rank_finds_its_gpu(gpus):
    gpus("a", "b")
    assert [find_device(Launch(rank, 4, rank % 2)).index for rank in range(4)] == [0, 1, 0, 1]
    gpus("b")  # --gpus-per-task=1
    assert find_device(Launch(1, 2, 1)) == torch.device("cuda", 0)
    gpus()
    assert find_device(Launch(1, 2, 1)) == torch.device("cpu")


class Told(Meeting):
    """The meeting of ranks whose GPUs are these, but this one's."""

    def __init__(self, rank, others):
        super().__init__(rank, len(others))
        self.others = others

    def gather_texts(self, text):
        return [text if rank == self.rank else other for rank, other in enumerate(self.others)]


def test_ranks_do_not_share_a_gpu(gpus):
    gpus("b")
    require_own_devices(Launch(1, 2, 1), Told(1, ["a", ""]))
    require_own_devices(Launch(), Meeting())
    with pytest.raises(InputError, match="ranks 0, 1 have the same GPU: one a rank is needed"):
        require_own_devices(Launch(1, 2, 1), Told(1, ["b", ""]))
    with pytest.raises(InputError, match="ranks 0, 2 see no GPU, the others do"):
        require_own_devices(Launch(1, 3, 1), Told(1, [None, "", None]))
    gpus()
    require_own_devices(Launch(1, 2, 1), Told(1, [None, None]))


def test_threads_are_the_cores_that_a_rank_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    srun = {"SLURM_CPUS_PER_TASK": "6"}
    assert threads_of(Launch(0, 4, 0, 4), {}) == 4
    assert threads_of(Launch(0, 4, 0, 4), srun) == 6  # each task's own
    assert threads_of(Launch(0, 4, 0, 4), {"SLURM_CPUS_PER_TASK": "64"}) == 16
    assert threads_of(Launch(0, 4, 0, 4), {**srun, "RANK": "0"}) == 4  # the task is torchrun, with four ranks
    assert threads_of(Launch(0, 64, 0, 64), {}) == 1
