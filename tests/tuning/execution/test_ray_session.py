"""A Ray of one's own: slow to start, closed to the network, and gone without a trace."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from tests.tuning.execution.instant import instant_file, start, write_instant
from tests.tuning.execution.nodes import processes
from tests.tuning.execution.slot import HOLD
from tests.waiting import wait_until
from trainers.folders import locked
from tuning.execution.ray_session import PREFIX, ray_session, retry_slow_start
from tuning.execution.signals import GC_THRESHOLD

LOOPBACK = ("0100007F:", "0000000000000000FFFF00000100007F:")
"""Beginnings of addresses as the kernel writes them."""
SLOW = "The current node timed out during startup. This could happen because of many things."


def test_a_slow_start_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    start = Mock(side_effect=[Exception(SLOW), "started"])
    assert retry_slow_start(start) == "started"
    assert "did not start in time" in caplog.text


def test_another_failure_is_not_retried() -> None:
    start = Mock(side_effect=[Exception("no such file"), "started"])
    with pytest.raises(Exception, match="no such file"):
        retry_slow_start(start)
    assert start.call_count == 1


TOO_SLOW = """
import sys, time
from ray._private import node, services
from cluster.cli import main
from tuning.execution import ray_session

def find_node(*_):
    raise RuntimeError("not there yet")

class FastClock:
    def __getattr__(self, name):
        return getattr(time, name)

    def monotonic(self):
        return 60 * time.monotonic()

services.get_node = find_node  # by which Ray waits for its own start, 30 s of this clock
node.time = FastClock()
ray_session.STARTS = 2
sys.argv = ["lipsum-tune", "search", sys.argv[1]]
main()
"""


@pytest.mark.slow
def test_a_ray_that_never_starts_is_one_line_and_no_run_folder(
    images_root: Path, tmp_path: Path
) -> None:
    path = write_instant(tmp_path, instant_file(images_root, tmp_path / "runs"))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-c", TOO_SLOW, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    *warnings, last = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert "a local Ray cluster: The current node timed out during startup." in last
    assert "Is this machine very busy?" in last
    assert sum("did not start in time" in line for line in warnings) == 1
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]


def listening(of: Mapping[int, str]) -> dict[str, str]:
    """Addresses, in hexadecimal, at which processes listen, and their names."""
    names = {}
    for process, name in of.items():
        for entry in Path(f"/proc/{process}/fd").glob("*"):
            try:
                names[str(entry.readlink())] = name
            except OSError:
                continue
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    listen = "0A"
    return {
        line[1]: names[f"socket:[{line[9]}]"]
        for line in lines
        if line[3] == listen and f"socket:[{line[9]}]" in names
    }


@pytest.fixture(scope="module")
def of_own_ray() -> Iterator[dict[int, str]]:
    """The processes of a Ray that is started here, with their names."""
    before = processes(os.getpid())
    with ray_session() as is_own:
        assert is_own
        yield {pid: name for pid, name in processes(os.getpid()).items() if pid not in before}


@pytest.mark.slow
def test_a_local_ray_is_closed_to_the_network(of_own_ray: dict[int, str]) -> None:
    found = listening(of_own_ray)
    assert {"gcs_server", "raylet"} <= set(found.values())
    assert [name for address, name in found.items() if not address.startswith(LOOPBACK)] == []
    token = Path.home() / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o077 == 0  # also before the token was there


@pytest.mark.slow
@pytest.mark.usefixtures("of_own_ray")
def test_processes_of_a_local_ray_collect_garbage_less_often() -> None:
    threshold, *_ = ray.get(ray.remote(lambda: gc.get_threshold()).remote())
    assert threshold == GC_THRESHOLD


@pytest.mark.cluster
def test_a_killed_local_search_leaves_files_that_the_next_one_removes(
    images_root: Path, tmp_path: Path
) -> None:
    """The next search also removes its own files, and keeps those of a search that is running."""
    path = write_instant(tmp_path / "config", instant_file(images_root, tmp_path / "runs"))
    hold = tmp_path / "runs" / HOLD
    hold.touch()
    temporary = Path(tempfile.mkdtemp(prefix="t-"))  # short, for the sockets in it
    other = temporary / f"{PREFIX}of-another-search"
    other.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["TMPDIR"] = str(temporary)
    journal = tmp_path / "runs" / "small" / "journal.jsonl"

    def started(path: Path, reports: int) -> subprocess.Popen[bytes]:
        driver = start(path, tmp_path / "log.txt", env=environment)
        wait_until(
            lambda: journal.exists() and journal.read_text().count('"event": "report"') >= reports,
            process=driver,
        )
        return driver

    with locked(other):
        killed = started(path, reports=1)
        of_ray = processes(killed.pid).keys() - {killed.pid}
        killed.kill()
        killed.wait()
        while any(Path(f"/proc/{process}").exists() for process in of_ray):
            time.sleep(0.1)
        assert len(list(temporary.glob(f"{PREFIX}*"))) == 2
        driver = started(journal.parent, reports=2)
        assert len(list(temporary.glob(f"{PREFIX}*"))) == 2
    hold.unlink()
    assert driver.wait() == 0
    left = [path.name for path in temporary.iterdir() if path != other]
    shutil.rmtree(temporary)
    assert [name for name in left if not name.startswith("torchinductor")] == []  # PyTorch's cache
