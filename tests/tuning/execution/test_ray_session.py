"""A Ray of one's own: closed to the network, and gone without a trace."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from tests.tuning.execution.instant import instant_file, run_instantly
from tests.tuning.execution.nodes import processes
from tests.waiting import wait_until
from trainers.errors import StorageFailed
from trainers.ray_trainer import torch_trainer
from tuning import search as search_module
from tuning.execution import ray_session as module
from tuning.execution.ray_session import LONGEST_PARENT, PREFIX, ray_session
from tuning.run import load_run
from tuning.search import resume_search, search_or_resume

LOOPBACK = ("0100007F:", "0000000000000000FFFF00000100007F:")
"""Beginnings of addresses as the kernel writes them."""


def listening(of):
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
def of_own_ray():
    """The processes of a Ray that is started here, with their names."""
    before = processes(os.getpid())
    with ray_session() as is_own:
        assert is_own
        yield {pid: name for pid, name in processes(os.getpid()).items() if pid not in before}


@pytest.mark.ray
def test_a_local_ray_is_closed_to_the_network_and_other_users(of_own_ray):
    found = listening(of_own_ray)
    assert {"gcs_server", "raylet"} <= set(found.values())
    assert [name for address, name in found.items() if not address.startswith(LOOPBACK)] == []
    token = Path.home() / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o077 == 0  # also before the token was there
    # Its folder is closed to other users, and the longest parent leaves room for its sockets.
    socket = ray.nodes()[0]["ObjectStoreSocketName"]
    own = next(path for path in Path(socket).parents if path.name.startswith(PREFIX))
    assert own.stat().st_mode & 0o777 == 0o700
    below = len(socket) - len(str(own.parent)) - len(str(os.getpid()))
    assert LONGEST_PARENT + below + len("99999") <= 103  # macOS
    assert LONGEST_PARENT + below + len("4194304") <= 107  # Linux


@pytest.mark.ray
@pytest.mark.usefixtures("of_own_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_is_closed_to_the_network(workers, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()

    def loop(_):
        import torch

        from trainers.distributed import averaged, world

        rank, _ = world()  # as PyTorch sees it
        mean = averaged(torch.tensor(float(rank))).item()
        (tmp_path / f"rank-{rank}").write_text(f"{os.getpid()} {mean}")
        wait_until(lambda: not hold.exists())

    trainer = torch_trainer(loop, {}, name="closed", scratch=tmp_path, workers=workers)
    training = threading.Thread(target=trainer.fit)
    training.start()
    try:
        reports = [tmp_path / f"rank-{rank}" for rank in range(workers)]
        wait_until(lambda: all(report.exists() and report.read_text() for report in reports))
        seen = [report.read_text().split() for report in reports]
        assert {float(mean) for _, mean in seen} == {(workers - 1) / 2}
        found = listening({int(process): "worker" for process, _ in seen})
        assert [address for address in found if not address.startswith(LOOPBACK)] == []
    finally:
        hold.unlink()
        training.join()


@pytest.fixture
def starts(monkeypatch):
    """The starts of a local Ray; so many as `starts.fail` says take too long."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    attempts = SimpleNamespace(made=0, fail=0)

    def start(*_, **__):
        attempts.made += 1
        if attempts.made <= attempts.fail:
            raise Exception("The current node timed out during startup. The GCS is overloaded.")

    monkeypatch.setattr(module, "_init", start)
    # One that `of_own_ray` started may still be there, and stays.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return attempts


def test_a_ray_that_starts_slowly_is_started_again(starts):
    starts.fail = 1
    with ray_session() as is_own:
        assert is_own
    assert starts.made == 2


def test_a_ray_that_starts_slowly_twice_is_no_mistake(starts, images_root, tmp_path, monkeypatch):
    starts.fail = 2
    with pytest.raises(StorageFailed, match=r"timed out .*`lipsum-tune resume .*small` goes on"):
        run_instantly(instant_file(images_root, tmp_path))
    assert starts.made == 2
    run = load_run(tmp_path / "small")
    went_on = []
    monkeypatch.setattr(search_module, "continue_search", lambda folder, *_: went_on.append(folder))
    resume_search(run.folder)
    search_or_resume(run.file)
    assert went_on == [run.folder] * 2


@pytest.mark.ray
def test_a_ray_that_does_not_start_is_one_error_and_leaves_no_files():
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    program = "from tuning.execution.ray_session import ray_session\nwith ray_session(): pass"
    command = [sys.executable, "-c", program]
    with tempfile.TemporaryDirectory(prefix="t-") as folder:  # short enough for sockets in it
        variables |= {"TMPDIR": folder, "RAY_OVERRIDE_RESOURCES": "this is no JSON"}
        failed = subprocess.run(command, env=variables, capture_output=True, check=False)
        assert list(Path(folder).iterdir()) == []
    assert b"ConfigError: cannot connect to a local Ray cluster" in failed.stderr
