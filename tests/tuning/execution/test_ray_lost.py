"""A search whose Ray is killed: real processes, and Ray waits before it gives up."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks.kills import disagreements
from tests.tuning.execution.instant import HOLD, instant_file, write_instant
from tests.tuning.execution.test_sessions import num_reports, start, wait_for
from tuning.execution.ray_watch import RayLost, RayWatch
from tuning.runs.run_folder import load_run


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(RayLost, match=r"Ray's raylet at 127.0.0.1:1 is gone \(.*refused\)"):
        RayWatch({"raylet": ("127.0.0.1", 1)}).check()


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_search_without_ray_ends_and_can_be_resumed(
    name: str, images_root: Path, tmp_path: Path
) -> None:
    file = instant_file(images_root, tmp_path, search__resources__max_failures=0)
    folder, hold = tmp_path / "small", tmp_path / HOLD
    hold.touch()
    log = tmp_path / "log.txt"
    driver = start(write_instant(tmp_path / "config", file), log)
    wait_for(lambda: num_reports(folder) == 1, driver)
    os.kill(child(driver, name), signal.SIGKILL)
    assert driver.wait() == 75
    history = load_run(folder).history
    assert history.outcome == "stopped"
    assert [record.outcome for record in history.records] == ["stopped"]
    hold.unlink()
    assert start(folder, log).wait() == 0
    assert disagreements(folder) == []


def child(parent: subprocess.Popen[bytes], name: str) -> int:
    """The process of that name below another one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:  # it has ended
            continue
        found, fields = rest.rsplit(") ", 1)
        parents[int(pid)] = found, int(fields.split()[1])
    for pid, (found, above) in parents.items():
        while found == name and above in parents:
            if above == parent.pid:
                return pid
            above = parents[above][1]
    raise AssertionError(f"no process {name}")
