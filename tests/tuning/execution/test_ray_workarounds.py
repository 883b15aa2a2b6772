"""Each workaround is still needed and works; a test that fails asks to look at it again."""

import os
import time
from functools import reduce
from importlib import import_module
from inspect import getsource

import pytest
import ray
from ray import cloudpickle
from ray._private import node, services
from ray.air.execution import FixedResourceManager
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.class_cache import _ActorClassCache
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.state import list_actors

from trainers.errors import ConfigError
from trainers.ray_trainer import torch_trainer
from tuning.execution import ray_workarounds
from tuning.execution.ray_session import ray_session
from tuning.execution.ray_workarounds import (
    INTERNALS,
    loopback_only,
    remove_orphaned_groups,
    tune_workarounds,
    without_helpers,
)


def test_ray_has_no_class_for_a_start_that_takes_too_long():
    text = "timed out during startup"
    assert f'raise Exception(\n                        "The current node {text}' in getsource(node)
    assert ray_workarounds.is_timeout(Exception(f"The current node {text}"))


@pytest.fixture
def connected(ray_head):
    """A connection to Ray, which Tune's manager of actors would start by itself."""
    with ray_session(ray_head.address):
        yield


class LostActor:
    """An actor of Tune and a task on it; both record the errors that they get."""

    def __init__(self):
        self.errors = []
        self.actor_id = "abc"
        self._tracked_actor = self

    def _on_error(self, tracked, exception):
        self.errors.append(exception)


HANDLERS = {"_actor_task_failed": "tracked_actor_task", "_actor_start_failed": "tracked_actor"}


def fail(handler, monkeypatch):
    """What Tune's callbacks get when a process of a slot was killed for lack of memory."""
    manager, lost = RayActorManager(FixedResourceManager({"CPU": 1})), LostActor()
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    error = OutOfMemoryError("the node ran low on memory")
    getattr(manager, handler)(**{HANDLERS[handler]: lost, "exception": error})  # as Ray calls them
    return lost.errors


@pytest.mark.ray
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.usefixtures("connected")
def test_tune_gets_an_actor_error_for_a_killed_driver(handler, monkeypatch):
    with tune_workarounds():
        errors = fail(handler, monkeypatch)
    assert errors
    assert all(type(error) is RayActorError for error in errors)
    message = str(cloudpickle.loads(cloudpickle.dumps(errors[0])))
    assert message == "OutOfMemoryError: the node ran low on memory"


@pytest.mark.ray
@pytest.mark.usefixtures("connected")
def test_tune_itself_still_crashes_on_such_an_error(monkeypatch):
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail("_actor_task_failed", monkeypatch)


def test_ray_itself_still_replaces_the_loopback_address(monkeypatch):
    monkeypatch.setattr("ray._private.worker._global_node", None)  # of a Ray that others started
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "10.0.0.5")
    before = dict(os.environ)
    assert services.resolve_ip_for_localhost("127.0.0.1") == "10.0.0.5"
    with loopback_only():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert services.resolve_ip_for_localhost("127.0.0.1") == "10.0.0.5"
    assert dict(os.environ) == before


def environment_of_trials(monkeypatch):
    """The variables that Tune gives to the actors of its trials."""
    given = {}

    def remote(**options):
        given.update(options)
        return lambda actor_class: actor_class

    monkeypatch.setattr("ray.remote", remote)
    _ActorClassCache().get(LostActor)
    environment = given["runtime_env"]["env_vars"]
    return environment


def test_aws_keys_are_not_copied_to_trials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-tests")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    assert "AWS_SECRET_ACCESS_KEY" in environment_of_trials(monkeypatch)  # Tune still copies them
    with tune_workarounds():
        environment = environment_of_trials(monkeypatch)
    assert "RAY_TRAIN_V2_ENABLED" in environment
    assert not any(name.startswith("AWS_") for name in environment)


def holder():
    """An actor with a placement group; a local class, so that its process imports nothing else."""

    class Holder:
        def hold(self):
            self.group = placement_group([{"CPU": 0.01}])
            ray.get(self.group.ready())
            return str(self.group.id.hex())

    return ray.remote(num_cpus=0)(Holder).remote()


def groups():
    return {name: group["state"] for name, group in placement_group_table().items()}


@pytest.mark.ray
def test_the_placement_group_of_a_killed_actor_is_removed(ray_head):
    with ray_session(ray_head.address):
        killed, alive = holder(), holder()
        lost, kept = ray.get([killed.hold.remote(), alive.hold.remote()])
        own = placement_group([{"CPU": 0.01}])
        ray.get(own.ready())
        ray.kill(killed)
        while any(
            one.actor_id == killed._actor_id.hex() and one.state != "DEAD"
            for one in list_actors(ray_head.address)
        ):
            time.sleep(0.1)
        assert groups()[lost] == "CREATED"  # Ray itself still keeps it
        while groups()[lost] != "REMOVED":
            remove_orphaned_groups()
        assert (groups()[kept], groups()[own.id.hex()]) == ("CREATED", "CREATED")


def test_a_training_starts_without_helpers(tmp_path):
    trainer = torch_trainer(print, {}, name="any", scratch=tmp_path)

    def callbacks():
        return [type(one).__name__ for one in trainer._create_default_callbacks()]

    before, left_out = callbacks(), {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert left_out < set(before)  # Ray Train itself still adds both
    without_helpers(trainer)
    assert callbacks() == [name for name in before if name not in left_out]


@pytest.mark.parametrize(("module", "name", "loss"), INTERNALS)
def test_without_an_internal_that_keeps_a_search_safe_nothing_starts(
    module, name, loss, monkeypatch
):
    monkeypatch.setattr(ray, "init", None)
    *owner, last = name.split(".")
    monkeypatch.delattr(reduce(getattr, owner, import_module(module)), last)
    with pytest.raises(ConfigError) as caught, ray_session():
        pass
    assert f"has no {module}.{name}, and {loss}" in caught.value.problem
    assert caught.value.hint == "pip install 'ray==2.60.*'"
