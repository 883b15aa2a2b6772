"""A head of Ray for tests, as `ray start` makes one; only what was started is stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from ray.job_submission import JobSubmissionClient

from tuning.execution.ray_session import free_port, patiently

BIN = Path(sys.executable).parent
START_S = 120.0


@dataclass(frozen=True)
class Head:
    """A running one."""

    address: str
    """`host:port`, for drivers."""
    dashboard: str
    """`http://...`, for jobs."""
    folder: Path
    """All that it writes, logs among it."""
    environment: Mapping[str, str]
    """For commands that are to find it."""


@contextmanager
def running_head(**variables: str) -> Iterator[Head]:
    """A head on this machine, everything that it serves on loopback.

    Args:
        variables: added to its environment.
    """
    with ExitStack() as stack:
        yield patiently(lambda: stack.enter_context(_started(variables)))


@contextmanager
def _started(variables: Mapping[str, str]) -> Iterator[Head]:
    port, dashboard, agent, client = (free_port() for _ in range(4))
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: a socket's path has 107 characters
    known = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment = known | variables | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={port}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
            f"--temp-dir={folder}", "--disable-usage-stats",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder, environment)
    try:
        _wait_for(head.dashboard, f"http://127.0.0.1:{agent}", process)
        yield head
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(dashboard: str, agent: str, process: subprocess.Popen[bytes]) -> None:
    """Until jobs are taken, and the node has what would start them."""
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
            time.sleep(0.5)
