"""One in twenty of the inputs of `make hostile`, and that it notices what is not as promised."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers import run_process
from tests.hostile.surfaces import all_cases


def test_some_inputs_end_as_promised() -> None:
    done = run_process(sys.executable, "-m", "tests.hostile", "--quick", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_hundreds_with_names_of_their_own() -> None:
    names = [(case.surface, case.name) for case in all_cases()]
    assert len(set(names)) == len(names) >= 400 and len({surface for surface, _ in names}) == 17


FAKE = """
import os, sys, time
def main():
    what, outside = sys.argv[1:]
    if what == "hang": time.sleep(100)
    if what == "raise": raise RuntimeError("x")
    if what == "memory": kept = bytearray(700 << 20)
    if what == "write": open(os.path.join(outside, "new"), "w").close()
    if what == "spin":
        while time.process_time() < 2: pass
    print("error: the file")
    return 1 if what == "fail" else 2
"""


def test_every_broken_promise_is_noticed(tmp_path: Path) -> None:
    """In a process of its own, whose threads are none."""
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from tests.hostile import pool
from tests.hostile.case import Case
pool.PRELOADED = ()
pool.PATIENCE = 15
def case(what, said="the file"):
    return Case("x", what, "fake_command", lambda p: [what, str(p.outside)], said, seconds=1, megabytes=500)
whats = ("hang", "raise", "memory", "write", "spin", "fail", "nothing")
cases = [*map(case, whats), case("unnamed", "another file")]
for result in pool.run_cases(cases, Path({str(tmp_path)!r}) / "cases", Path("/")):
    print(result.case.name, "|", "; ".join(result.faults))
"""
    (tmp_path / "fake_command.py").write_text(FAKE)
    done = run_process(sys.executable, "-c", program)
    said = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert said.pop("nothing") == "", done.stderr
    for what, fault in {
        "hang": "no end within 15 s",
        "raise": "exit code 1, promised 2; a traceback",
        "memory": "at most 500 were promised",
        "write": "changed what lies outside",
        "spin": "s, at most 1 were promised",
        "fail": "exit code 1, promised 2",
        "unnamed": "does not name 'another file'",
    }.items():
        assert fault in said.pop(what), what
    assert not said


SILENT_PORT = """
import os, socket, time
from pretraining.parallel.launch import Launch
from pretraining.parallel.lost import LostPeer
from pretraining.parallel.meeting import meet
server = socket.create_server(("127.0.0.1", 0))
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(server.getsockname()[1]))
try:
    meet(Launch(rank=1, size=2), 2.0)
except LostPeer as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_port_that_says_nothing_holds_nobody_up() -> None:
    """torch waits for it without end, whatever its timeout."""
    assert "does not answer as a rank does" in run_process(sys.executable, "-c", SILENT_PORT, timeout=120).stdout
