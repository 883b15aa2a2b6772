"""The original error behind those that Ray wraps around it."""

import pytest
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.tune import TuneError

from trainers.errors import StorageFailed
from tuning.log.errors import resumable, storage_failure

FULL = "No space left on device"


def test_a_failure_of_storage_is_found_behind_all_that_ray_makes_of_it():
    failure = StorageFailed("s3://mine: refused")
    lost = ConnectionError("rank 0 is gone")
    of_workers = WorkerGroupError("a page", {0: lost, 1: failure})
    as_ray_tells = RayTaskError("train", "a page", of_workers)
    assert storage_failure(as_ray_tells.as_instanceof_cause()) is failure
    task = RayTaskError("train", "a page", failure).as_instanceof_cause()
    assert isinstance(task, StorageFailed)
    assert storage_failure(task) is failure  # and not the page
    full = storage_failure(OSError(28, "No space left on device", "/cache/x"))
    assert str(full) == f"/cache/x: {FULL}"
    for other in (OSError(2, "No such file", "/cache/x"), WorkerGroupError("", {0: lost}), None):
        assert storage_failure(other) is None
    assert storage_failure(ControllerError(lost)) is None
    with pytest.raises(StorageFailed, match="refused; resume it"), resumable("resume it"):
        as_tune_does(failure)
    with (
        pytest.raises(StorageFailed) as said,
        resumable("go on"),
        resumable("correct it, then go on"),
    ):
        as_tune_does(failure)
    assert str(said.value).count("go on") == 1
    with pytest.raises(ZeroDivisionError), resumable("resume it"):
        raise ZeroDivisionError


def as_tune_does(error):
    try:
        raise error
    except StorageFailed:
        raise TuneError("a page") from None
