"""A search whose Ray is killed: real processes, and Ray waits before it gives up."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.kills import disagreements
from tests.tuning.execution.instant import instant_file, num_reports, start, write_instant
from tests.tuning.execution.nodes import processes
from tests.tuning.execution.slot import HOLD
from tests.waiting import wait_until
from tuning.execution import ray_watch
from tuning.execution.ray_watch import HEAD, RayLost, RayWatch, watched_ray
from tuning.execution.signals import interrupted_by_sigterm
from tuning.runs.run_folder import load_run


def test_the_loss_of_ray_in_the_preparation_is_no_interruption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_watch, "_servers", lambda: {"raylet": ("127.0.0.1", 1)})
    monkeypatch.setattr(ray_watch, "CHECK_S", 0.01)
    lost = r"Ray's raylet at 127.0.0.1:1 is gone \(.*refused\)"
    with pytest.raises(RayLost, match=lost), interrupted_by_sigterm(), watched_ray(tmp_path):
        time.sleep(60)


def test_the_loss_of_the_head_in_the_preparation_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_watch, "CHECK_S", 0.01)
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        RayWatch({HEAD: ("127.0.0.1", 1)}, tmp_path).run()
    assert ended.value.code == 75
    assert f"`lipsum-tune resume {tmp_path}` goes on" in capsys.readouterr().err


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
    wait_until(lambda: num_reports(folder) == 1, process=driver)
    process = next(pid for pid, found in processes(driver.pid).items() if found == name)
    os.kill(process, signal.SIGKILL)
    assert driver.wait() == 75
    history = load_run(folder).history
    assert history.outcome == "stopped"
    assert [record.outcome for record in history.records] == ["stopped"]
    hold.unlink()
    assert start(folder, log).wait() == 0
    assert disagreements(folder) == []
