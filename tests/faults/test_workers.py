"""A data worker that dies, as real processes."""

from __future__ import annotations

from data_pipeline.common.json_files import read_json
from tests.faults.runs import Job, losses


def test_a_killed_data_worker_loses_nothing_and_asks_for_a_restart(corpus, tmp_path):
    whole = Job(corpus, tmp_path / "whole", "data.num_workers=1")
    job = Job(corpus, tmp_path / "run", "data.num_workers=1", "train.checkpoint_every=0", fault="kill_worker:1:8")
    assert job.ends() == [75, 75], job.output()
    assert "rank 1: a data worker died without a word: killed, or out of memory" in job.output()
    verdict = read_json(job.run_dir / "verdict.json")
    assert verdict["exit_code"] == 75
    again = Job(corpus, job.run_dir, "data.num_workers=1")
    assert again.ends() == [0, 0] and whole.ends() == [0, 0], again.output()
    assert losses(job.run_dir) == losses(whole.run_dir)
