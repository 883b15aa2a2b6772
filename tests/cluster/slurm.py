"""A real Slurm for the tests: a controller and two nodes on this machine, on loopback.

Needs root and the programs of Debian's packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODES = ("n1", "n2")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


@dataclass(frozen=True)
class Slurm:
    """A running Slurm, by its configuration."""

    configuration: Path

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, its output as text."""
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment["SLURM_CONF"] = str(self.configuration)
        return subprocess.run(command, env=environment, capture_output=True, text=True, **options)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ExitCode and so on."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number, check=True).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait_for(self, what: Callable[[], bool], seconds: float, doing: str) -> None:
        """Return once it is so; raise a TimeoutError where it is not in time."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{doing}: not within {seconds:g} s")
            time.sleep(0.5)


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start all that Slurm is made of; stopped, the last first, when the block ends."""
    host = socket.gethostname().split(".")[0]
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    folder.chmod(0o700)
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder, host))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    slurm = Slurm(configuration)
    files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    munge = [f"--{name}={folder / file}" for name, file in (files | {"seed-file": "seed"}).items()]
    with ExitStack() as stack:

        def start(name: str, command: Sequence[str]) -> None:
            stack.enter_context(_daemon(command, configuration, folder / f"{name}.out"))

        start("munged", ["munged", "--foreground", "--force", f"--key-file={key}", *munge])
        slurm.wait_for((folder / "munge.socket").exists, 30, "starting munged")
        start("slurmctld", ["slurmctld", "-D"])
        for node in NODES:
            (folder / "spool" / node).mkdir(parents=True)
            start(node, ["slurmd", "-D", "-N", node])

        def all_idle() -> bool:
            shown = slurm.run("sinfo", "--noheader", "--Node", "--format=%t").stdout
            return shown.split() == ["idle"] * len(NODES)

        slurm.wait_for(all_idle, 60, "starting Slurm")
        yield slurm


@contextmanager
def _daemon(command: Sequence[str], configuration: Path, output: Path) -> Iterator[None]:
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    with output.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _configuration(folder: Path, host: str) -> str:
    first = _free_ports(1 + len(NODES))
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={first}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first + 1}-{first + 2}] CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> int:
    """The first of so many neighbours that nobody listens on."""
    for first in range(27000, 29000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    callback = stack.enter_context(closing(socket.socket()))
                    callback.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports between 27000 and 29000")
