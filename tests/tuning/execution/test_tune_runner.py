from __future__ import annotations

import pytest
from ray import cloudpickle
from ray.air.execution import FixedResourceManager
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from tuning.execution.tune_runner import treat_ray_errors_as_actor_failures


class Lost:
    """An actor of Tune's, and a task on it; both keep what they are told."""

    def __init__(self) -> None:
        self.told: list[Exception] = []
        self.actor_id = "abc"
        self._tracked_actor = self

    def _on_error(self, tracked: Lost, exception: Exception) -> None:
        self.told.append(exception)


TOLD = {"_actor_task_failed": "tracked_actor_task", "_actor_start_failed": "tracked_actor"}


@pytest.mark.parametrize("told", TOLD)
def test_a_driver_that_was_killed_for_want_of_memory_is_a_lost_actor_to_tune(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    treat_ray_errors_as_actor_failures()
    treat_ray_errors_as_actor_failures()
    manager, lost = RayActorManager(FixedResourceManager({"CPU": 1})), Lost()
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    error, name = OutOfMemoryError("the node ran low on memory"), TOLD[told]
    getattr(manager, told)(**{name: lost, "exception": error})  # as Ray calls them
    assert lost.told
    assert all(type(error) is RayActorError for error in lost.told)
    said = str(cloudpickle.loads(cloudpickle.dumps(lost.told[0])))
    assert said == "OutOfMemoryError: the node ran low on memory"
