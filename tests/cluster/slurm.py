"""A real Slurm for tests: a controller and two nodes on loopback.

Needs root, and Debian's packages slurm-wlm and munge.
"""

import os
import re
import secrets
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports
from tests.waiting import wait_until

NODES = ("n1", "n2")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


@dataclass(frozen=True)
class Slurm:
    configuration: Path

    def run(self, *command, **options):
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment["SLURM_CONF"] = str(self.configuration)
        return subprocess.run(command, env=environment, capture_output=True, text=True, **options)

    def job(self, number):
        """Fields of a job, such as JobState, Restarts, ExitCode."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number, check=True).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))


@contextmanager
def running_slurm(folder):
    """Start munge, the controller and the nodes, and stop them afterwards."""
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

        def start(name, command):
            stack.enter_context(_daemon(command, configuration, folder / f"{name}.out"))

        start("munged", ["munged", "--foreground", "--force", f"--key-file={key}", *munge])
        wait_until((folder / "munge.socket").exists, 30)
        start("slurmctld", ["slurmctld", "-D"])
        for node in NODES:
            (folder / "spool" / node).mkdir(parents=True)
            start(node, ["slurmd", "-D", "-N", node])

        def all_idle():
            shown = slurm.run("sinfo", "--noheader", "--Node", "--format=%t").stdout
            return shown.split() == ["idle"] * len(NODES)

        wait_until(all_idle, 60)
        yield slurm


@contextmanager
def _daemon(command, configuration, output):
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    with output.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _configuration(folder, host):
    first = free_ports(1 + len(NODES))
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
