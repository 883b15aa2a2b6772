"""A search whose Ray is killed: real processes, and Ray waits before it gives up."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.benchmarks.kills import disagreements
from tests.tuning.execution.instant import instant_file, num_reports, start, write_instant
from tests.tuning.execution.nodes import processes, wait_for
from tests.tuning.execution.slot import HOLD
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
    process = next(pid for pid, found in processes(driver.pid).items() if found == name)
    os.kill(process, signal.SIGKILL)
    assert driver.wait() == 75
    history = load_run(folder).history
    assert history.outcome == "stopped"
    assert [record.outcome for record in history.records] == ["stopped"]
    hold.unlink()
    assert start(folder, log).wait() == 0
    assert disagreements(folder) == []
