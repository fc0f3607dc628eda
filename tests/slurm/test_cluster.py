"""One job on a real SLURM of two virtual nodes, where its packages are installed; `make test-slurm` has the rest."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import Cluster, left_behind, why_not
from tests.slurm.jobs import Runs, require

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no virtual SLURM: {why_not()}")


def test_a_job_that_is_signaled_saves_and_requeues_itself(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with Cluster(folder / "cluster", nodes=2) as cluster:
        runs = Runs(cluster, corpus, folder)
        (folder / "job").mkdir()
        (folder / "job" / "slow").touch()
        job = runs.submit("job", options=("--nodes=2", "--ntasks-per-node=1"), steps=8)
        job.until_step(2)
        cluster.run("scancel", "--batch", "--signal=USR1", job.id)
        (folder / "job" / "slow").unlink()
        require(job.until_ended() == 0 and len(job.starts("begin")) == 2 and job.step() == 8, job, "it did not go on")
        require(job.was_saved_at_a_stop(0, int(job.starts("begin")[1][3])), job, "nothing was saved at the signal")
    assert not left_behind(folder)
