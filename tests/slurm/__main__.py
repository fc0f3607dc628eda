"""`make test-slurm`: a real SLURM of four virtual nodes, and what may happen to a job on it -> a table, 0 or 1."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.slurm import scenarios, submitted
from tests.slurm.cluster import Cluster, install, left_behind, why_not
from tests.slurm.jobs import Job, Runs

NODES = 4


class Table:
    """Rows as they come, from several threads."""

    def __init__(self) -> None:
        self.lock, self.failed = threading.Lock(), 0
        print("| scenario | outcome | seconds |\n| --- | --- | --- |", flush=True)

    def run(self, name: str, scenario: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            outcome = scenario()
        except Exception as error:
            with self.lock:
                self.failed += 1
            traceback.print_exception(error)
            outcome = f"FAILED: {str(error).splitlines()[0] if str(error) else repr(error)}"
        with self.lock:
            print(f"| {name} | {outcome} | {time.monotonic() - began:.0f} |", flush=True)


def disturbed_run(table: Table, runs: Runs) -> None:
    """One run of four ranks, through everything that ends a start."""
    found: list[Job] = []

    def begin() -> str:
        job, outcome = scenarios.time_limit(runs)
        found.append(job)
        return outcome

    table.run("time limit", begin)
    if not found:
        return
    job = found[0]
    table.run("scontrol requeue", lambda: scenarios.user_requeue(runs, job))
    table.run("pre-emption", lambda: scenarios.preemption(runs, job))
    table.run("killed node", lambda: scenarios.killed_node(runs, job))
    table.run("the same bits", lambda: scenarios.same_bits(runs, job))


def others(table: Table, runs: Runs) -> None:
    table.run("two nodes, four ranks", lambda: scenarios.two_nodes(runs))
    table.run("a finished run again", lambda: scenarios.finished(runs))
    table.run("array of three", lambda: scenarios.array(runs))
    table.run("chained jobs", lambda: scenarios.chain(runs))
    table.run("container", lambda: scenarios.container(runs))
    table.run("torchrun", lambda: scenarios.torchrun(runs))


def small_ones(table: Table, runs: Runs) -> None:
    table.run("bad override", lambda: scenarios.bad_override(runs))
    table.run("SIGKILL before step 1", lambda: scenarios.killed_before_step_1(runs))
    table.run("no progress", lambda: scenarios.no_progress(runs))
    table.run("scancel", lambda: scenarios.cancelled(runs))
    table.run("pretrain-submit", lambda: scenarios.submitted(runs))
    table.run("node failed twice", lambda: scenarios.node_failed_twice(runs))


def submitted_ones(table: Table, runs: Runs) -> None:
    table.run("submitted, then edited", lambda: submitted.edited_while_queued(runs))
    table.run("submitted sweep", lambda: submitted.sweep(runs))


def main() -> int:
    install()
    if (reason := why_not()) is not None:
        print(f"skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # through the cluster's end
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        corpus = prepare_corpus(folder / "corpus")
        with Cluster(folder / "cluster", NODES) as cluster:
            table = Table()
            runs = Runs(cluster, corpus, folder)
            # daemons: where this program is stopped, the cluster is, and no scenario is waited for
            parts = (disturbed_run, others, small_ones, submitted_ones)
            threads = [threading.Thread(target=part, args=(table, runs), daemon=True) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            table.run("slow node", lambda: submitted.slow_node(runs))  # alone: it may take any of the nodes
        left = left_behind(folder)
    print(f"{time.monotonic() - began:.0f} s; {table.failed} failed; left behind: {left or 'nothing'}")
    return 1 if table.failed or left else 0


def prepare_corpus(folder: Path) -> Path:
    import calendar

    from tests.helpers import prepare

    files = ",".join(f"{Path(calendar.__file__).parent}/{name}.py" for name in ("argparse", "ast", "calendar", "csv"))
    assert prepare(f"corpus.inputs=[{files}]", f"output={folder}", "tokenizer.vocab_size=512", "num_workers=1") == 0
    return folder


if __name__ == "__main__":
    sys.exit(main())
