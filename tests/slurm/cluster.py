"""A real SLURM on one machine: slurmctld and several slurmds, each with a host name of its own. Needs root, no systemd.

Everything lies in one scratch folder but the nodes' names: those stand in /etc/hosts while the cluster is up.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
HOSTS = Path("/etc/hosts")
MARK = "# tests.slurm"

CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MpiDefault=none
SlurmdTimeout=10
KillWait=5
MaxArraySize=100
FirstJobId={first_job}
{nodes}
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 MaxTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=60 State=UP
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if os.geteuid() != 0:
        return "the virtual nodes need root"
    missing = [p for p in PROGRAMS if shutil.which(p, path=_path()) is None]
    return f"{', '.join(missing)} not found (Debian: apt-get install {' '.join(PACKAGES)})" if missing else None


def install() -> None:
    """From Debian's packages, where apt is there; what is missing afterwards, why_not tells."""
    if why_not() is None or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        quick = ("-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1")  # where there is no network
        subprocess.run(["apt-get", *quick, *command], env=environment, check=False, stdout=subprocess.DEVNULL)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """To be used as `with Cluster(folder, nodes)`. cpus: of each node, which nothing binds."""

    def __init__(self, folder: Path, nodes: int, cpus: int = 4) -> None:
        self.folder, self.cpus = folder, cpus
        self.nodes = [f"vnode{number}" for number in range(1, nodes + 1)]
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        os.chmod(self.folder / "munge", 0o755)  # clients connect to the socket in it
        try:
            self._name_nodes()
            self._write_config()
            self._start_munge()
            self.processes["slurmctld"] = self._daemon("slurmctld", "-D", "-i")
            for node in self.nodes:
                self.start_node(node)
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", check=False)
            self.run("scancel", "--state=PENDING", check=False)
        for node in self.nodes:
            self.cut(node)
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
        _write_hosts(without=str(self.folder))

    def _name_nodes(self) -> None:
        for number, node in enumerate(self.nodes, 1):
            _write_hosts(f"127.0.1.{number} {node} {MARK} {self.folder}\n")

    def _write_config(self) -> None:
        first = _free_ports(len(self.nodes) + 1)
        nodes = [
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.1.{number} Port={first[number]} CPUs={self.cpus} "
            "RealMemory=100000 State=UNKNOWN"
            for number, node in enumerate(self.nodes, 1)
        ]
        text = CONFIG.format(
            first_job=random.randint(100, 60000),  # a port follows from it: not that of another cluster on this machine
            host=socket.gethostname(),
            port=first[0],
            folder=self.folder,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(text)

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        os.chmod(munge / "key", 0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self.processes["munged"] = self._daemon("munged", "--foreground", "--force", *options)
        _wait(lambda: (munge / "socket").exists(), 10, "munged did not start")

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{Path(command[0]).name}.out", "ab") as log:
            return subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self, node: str) -> None:
        """Also one that was cut off."""
        start = f"hostname {node}; exec slurmd -D -N {node}"
        self.processes[node] = self._daemon("unshare", "--uts", "sh", "-c", start)

    def cut(self, node: str) -> None:
        """As if its power were gone: every process of the node is killed at once."""
        process = self.processes.pop(node, None)
        if process is None:
            return
        try:
            names = os.readlink(f"/proc/{process.pid}/ns/uts")
        except OSError:
            names = ""
        for _ in range(3):  # what is being forked meanwhile
            for pid in _processes_of(names):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()

    def _wait_until_idle(self) -> None:
        def are_idle() -> bool:
            return self.run("sinfo", "-h", "-N", "-p", "normal", "-o", "%t", check=False).split() == ["idle"] * len(
                self.nodes
            )

        _wait(are_idle, 30, "the nodes did not come up")

    def run(self, *command: str, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """A client's command -> its output."""
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)}: {result.stdout}{result.stderr}")
        return result.stdout

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, ...; of an array's member JOB_TASK too."""
        found = self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).split()
        return found[0] if found else "GONE"

    def exit_code(self, job: str) -> int:
        text = self.show(job, "ExitCode")
        return int(text.partition(":")[0])

    def hosts(self, nodes: str) -> list[str]:
        """vnode[1-2] -> vnode1, vnode2"""
        return self.run("scontrol", "show", "hostnames", nodes).split()

    def show(self, job: str, key: str) -> str:
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


def _write_hosts(line: str = "", without: str | None = None) -> None:
    """Adds a line, or takes away those that end so: another cluster's stay. In place: where /etc/hosts is mounted by
    itself, as in a container, it cannot be replaced."""
    with HOSTS.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.read().splitlines(keepends=True)
        kept = [text for text in lines if without is None or not text.endswith(f"{MARK} {without}\n")]
        text = "".join(kept)
        if line and text and not text.endswith("\n"):
            text = f"{text}\n"
        file.seek(0)
        file.write(text + line)
        file.truncate()


def _wait(condition: Callable[[], object], seconds: float, message: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} within {seconds:g} s")
        time.sleep(0.2)


def _processes_of(uts: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if uts and os.readlink(f"/proc/{name}/ns/uts") == uts:
                    found.append(int(name))
    return found


def _free_ports(count: int) -> list[int]:
    """Held together until all are known, so that they differ."""
    listeners = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def left_behind(folder: Path) -> list[str]:
    """Processes that still name the cluster's folder in their command or environment, but this one; lines in
    /etc/hosts."""
    found = [line for line in HOSTS.read_text().splitlines() if str(folder) in line]
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                text = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
                if str(folder).encode() in text:
                    found.append(f"process {name} ({Path(f'/proc/{name}/comm').read_text().strip()})")
    return found
