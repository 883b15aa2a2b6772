"""A search whose Ray is killed: real processes, and Ray waits before it gives up."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tests.tuning.agreement import disagreements
from tests.tuning.execution.instant import instant_file, num_reports, start, write_instant
from tests.tuning.execution.nodes import processes
from tests.tuning.execution.slot import HOLD
from tests.waiting import wait_until
from tuning.execution import ray_watch
from tuning.execution.ray_watch import RayLost, RayWatch, watched_ray
from tuning.run import load_run


@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_call_that_ray_leaves_hanging_raises_in_any_thread(thread, monkeypatch):
    monkeypatch.setattr(ray_watch, "_servers", lambda: {"raylet": ("127.0.0.1", 1)})
    monkeypatch.setattr(ray_watch, "CHECK_S", 0.01)

    def search():
        with watched_ray() as watch:
            watch.call(Event().wait, 60)

    with ThreadPoolExecutor() as pool:
        run = pool.submit(search).result if thread == "other" else search
        with pytest.raises(RayLost, match=r"Ray's raylet at 127.0.0.1:1 is gone \(.*refused\)"):
            run()


def test_a_call_raises_what_its_function_raises():
    watch = RayWatch({})
    assert watch.call(int, "3") == 3
    with pytest.raises(ValueError, match="invalid literal"):
        watch.call(int, "three")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("raylet", marks=pytest.mark.cluster),
        pytest.param("gcs_server", marks=pytest.mark.nightly),
    ],
)
def test_a_search_without_ray_ends_and_can_be_resumed(name, images_root, tmp_path):
    file = instant_file(images_root, tmp_path, search__resources__max_failures=0)
    folder, hold = tmp_path / "small", tmp_path / HOLD
    hold.touch()
    log = tmp_path / "log.txt"
    driver = start(write_instant(tmp_path / "config", file), log)
    wait_until(lambda: num_reports(folder) == 1, process=driver)
    kill(driver, name)
    assert driver.wait() == 75
    history = load_run(folder).history
    assert history.outcome == "stopped"
    assert [record.outcome for record in history.records] == ["stopped"]
    hold.unlink()
    assert start(folder, log).wait() == 0
    assert disagreements(folder) == []


def kill(driver, name):
    process = next(pid for pid, found in processes(driver.pid).items() if found == name)
    os.kill(process, signal.SIGKILL)
