"""`make any-signal`: pretrain-data is stopped at random moments by one signal or two, and always ends soon.

python -m tests.data_pipeline.any_signal [MOMENTS]
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers import ROOT

SECONDS_TO_END = 20.0  # on a machine that does many other things; a second on an idle one
# Exit code 75; 0 where it was done already; the signal's own end where Python has not begun with the command
ENDS = (75, 0, -signal.SIGINT, -signal.SIGTERM)


def write_lines(path: Path, documents: int) -> Path:
    """Words in another order in each document."""
    rng, words = random.Random(5), [f"word{i}" for i in range(300)]
    path.write_text("".join(json.dumps({"text": " ".join(rng.choices(words, k=300))}) + "\n" for _ in range(documents)))
    return path


def start(source: Path, output: Path, workers: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        *("-m", "data_pipeline.prepare", f"corpus.inputs=['{source}']", f"output={output}", f"num_workers={workers}"),
        *("tokenizer.vocab_size=400", "block_tokens=20000", "shard_bytes=200000"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # In a session of its own, so that a Ctrl-C of the whole group can be sent as a terminal does
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[str], number: int, twice: bool, whole_group: bool) -> tuple[int, str]:
    """-> (exit code, what it said). subprocess.TimeoutExpired: it hangs, or left behind what holds its pipes."""
    for _ in range(1 + twice):
        if process.poll() is None:
            (os.killpg if whole_group else os.kill)(process.pid, number)
    try:
        said = "".join(process.communicate(timeout=SECONDS_TO_END))
    finally:
        process.kill()
    return process.returncode, said


def try_moments(folder: Path, moments: int, documents: int, seed: int = 0) -> list[int]:
    """-> the exit codes, until `moments` runs were stopped before their end. What they leave is then finished:
    the files are those of an undisturbed run."""
    source, rng = write_lines(folder / "in.jsonl", documents), random.Random(seed)
    started = time.monotonic()
    assert start(source, folder / "whole", 2).wait() == 0
    duration, codes = time.monotonic() - started, []
    for moment in range(4 * moments):
        if sum(code != 0 for code in codes) == moments:
            break
        output = folder / f"stopped{moment % 2}"  # each is continued by the next but one, until it is done
        if (output / "manifest.json").exists():
            shutil.rmtree(output)
        limit = 0.8 * duration if output.exists() else duration
        process, started = start(source, output, workers=2 * (moment % 3 > 0)), time.monotonic()
        try:
            process.wait(rng.uniform(0, limit))
            duration = min(duration, time.monotonic() - started)  # the first one may have met a busy machine
        except subprocess.TimeoutExpired:
            pass
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        code, said = stop(process, number, twice=rng.random() < 0.5, whole_group=rng.random() < 0.5)
        assert code in ENDS, (moment, code, said)
        codes.append(code)
    assert sum(code != 0 for code in codes) == moments, f"most runs were done before they were stopped: {codes}"
    for number in range(min(moments, 2)):
        output = folder / f"stopped{number}"
        assert start(source, output, 2).wait() == 0
        assert data_files(output) == data_files(folder / "whole")
    return codes


def data_files(root: Path) -> dict[str, bytes]:
    found = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in (".lock", "plan.json")]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        codes = try_moments(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 50, documents=3000)
    print(
        f"{len(codes)} moments, each ended; exit codes { ({code: codes.count(code) for code in sorted(set(codes))}) }"
    )
