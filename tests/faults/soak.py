"""A small run on two ranks that is killed or hung at random moments, and started again: `make soak` does it 30 times.

At its end the losses of all steps are those of a run that nothing disturbed, bit for bit. Then a run is rolled back
after a loss spike under every layout.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.common.json_files import read_json_if_there
from tests.faults.roll_backs import LAYOUTS, roll_back_and_kill
from tests.faults.runs import Job, losses
from tests.helpers import prepare

KINDS = ("rank", "job", "save", "data", "hang")  # what is disturbed
HANGS = ("hang_data", "hang_forward", "hang_exchange")
STEPS_EACH = 6  # at most this many steps behind the newest checkpoint, a start is disturbed
QUICK = ("train.watchdog_seconds=2", "train.timeout_seconds=6")  # where a hang is waited for
RUN = ("train.checkpoint_every=4", "data.num_workers=1")


@dataclass
class Disturbance:
    """kind: of KINDS. step: at which it fell. seconds: until all ranks had ended. codes: theirs."""

    kind: str
    step: int
    seconds: float
    codes: list[int]
    told: str

    def row(self) -> str:
        return f"| {self.kind} | {self.step} | {self.seconds:.1f} | {self.codes} | {self.told.split('.')[0][:90]} |"


def disturb(corpus: Path, run_dir: Path, steps: int, kind: str, rng: random.Random) -> Disturbance:
    """One start of the run, which does not come to its end."""
    saved = newest_step(run_dir)
    step = saved + rng.randint(1, STEPS_EACH)
    rank = rng.randrange(2)
    fault = {"data": "kill_in_data", "hang": rng.choice(HANGS)}.get(kind, "")
    overrides = (*RUN, *(QUICK if kind == "hang" else ()), f"train.steps={steps}")
    # a step is one that this process trains; its data come first
    job = Job(corpus, run_dir, *overrides, fault=f"{fault}:{rank}:{step + 1}" if fault else "")
    if kind in ("rank", "job"):
        job.wait_for_step(step)
        time.sleep(rng.random() * 0.1)
    elif kind == "save":
        wait_for_a_save(job, run_dir)
    began = time.monotonic()
    if kind == "rank":
        job.ranks[rank].kill()
    elif not fault:
        for process in job.ranks:
            process.kill()
    codes = job.ends()
    told = str(read_json_if_there(run_dir / "verdict.json").get("reason", "no verdict: all were killed"))
    seconds = time.monotonic() - began if not fault else job.seconds_after_first_end()
    return Disturbance(kind, step, seconds, codes, told)


def newest_step(run_dir: Path) -> int:
    whole = [f.parent.name for f in (run_dir / "checkpoints").glob("step_*/manifest.json")]
    return max((int(name.removeprefix("step_")) for name in whole), default=0)


def wait_for_a_save(job: Job, run_dir: Path) -> None:
    """Until a checkpoint is being written: its folder is there, its manifest is not."""
    known = {f for f in (run_dir / "checkpoints").glob("step_*")}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(p.exitcode is None for p in job.ranks):
        new = [f for f in (run_dir / "checkpoints").glob("step_*") if f not in known]
        if any(not (f / "manifest.json").exists() for f in new):
            return
    raise AssertionError(f"no checkpoint was begun:\n{job.output()}")


def soak(corpus: Path, folder: Path, times: int, seed: int = 1) -> list[Disturbance]:
    """Raises AssertionError where the run is another one than the undisturbed one."""
    rng = random.Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(times)]
    rng.shuffle(kinds)
    steps = times * (STEPS_EACH + 2)
    whole = Job(corpus, folder / "whole", *RUN, f"train.steps={steps}")
    assert whole.ends(600) == [0, 0], whole.output()
    done = []
    for kind in kinds:
        done.append(disturb(corpus, folder / "run", steps, kind, rng))
        print(done[-1].row(), flush=True)
    last = Job(corpus, folder / "run", *RUN, f"train.steps={steps}")
    assert last.ends(600) == [0, 0], last.output()
    assert losses(folder / "run") == losses(folder / "whole")
    return done


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = str(Path(random.__file__).parent)
        assert prepare(f"corpus.inputs=['{texts}/a*.py']", f"output={folder / 'data'}", "tokenizer.vocab_size=512") == 0
        print("| disturbed | at step | seconds until all had ended | exit codes | verdict |")
        print("| --- | --- | --- | --- | --- |")
        done = soak(folder / "data", folder, times)
        for layout in LAYOUTS:
            roll_back_and_kill(folder / "data", folder / layout, layout)
            print(f"rolled back, killed and continued: {layout}", flush=True)
    print(f"{len(done)} of {times} went on; all losses are those of the undisturbed run, bit for bit; ", end="")
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
