"""A Ray head for tests, started by `ray start` in processes of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests
from ray.job_submission import JobSubmissionClient

from tests.ports import free_ports

BIN = Path(sys.executable).parent
START_S = 120.0


@dataclass(frozen=True)
class Head:
    address: str
    """`host:port` for drivers, as in RAY_ADDRESS."""
    dashboard: str
    """`http://host:port` for jobs."""
    folder: Path
    """Ray's temporary folder, with all logs."""
    environment: Mapping[str, str]
    """Environment of the head, for commands that submit to it."""


def retry_slow_start(start):
    """Start something of Ray; once again if it took more than the 30 s that Ray gives it."""
    try:
        return start()
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray 2.60 raises a plain exception
            raise
        return start()


@contextmanager
def running_head(cpus=None, **variables):
    """Start a head that listens on loopback only, and stop it afterwards.

    Args:
        cpus: offered to trials; by default all of this machine.
        variables: added to the environment of the head and so of all its workers.
    """
    with ExitStack() as stack:
        yield retry_slow_start(lambda: stack.enter_context(_started(cpus, variables)))


@contextmanager
def _started(cpus, variables):
    port = free_ports(4)
    dashboard, agent, client = port + 1, port + 2, port + 3
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: a socket's path has 107 characters
    known = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment = known | variables | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={port}",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
            f"--temp-dir={folder}", "--disable-usage-stats",
            *([] if cpus is None else [f"--num-cpus={cpus}"]),
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder, environment)
    try:
        _wait_until_jobs_are_accepted(head.dashboard, f"http://127.0.0.1:{agent}", process)
        yield head
    finally:
        # After a training, SIGTERM takes half a minute. A head that was too slow has ended already.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_jobs_are_accepted(dashboard, agent, process):
    deadline = time.monotonic() + START_S
    while True:
        try:
            JobSubmissionClient(dashboard).list_jobs()
            requests.get(f"{agent}/api/local_raylet_healthz", timeout=10).raise_for_status()
            return
        except (OSError, RuntimeError):
            if process.poll() is not None:
                raise RuntimeError("the head timed out during startup") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
