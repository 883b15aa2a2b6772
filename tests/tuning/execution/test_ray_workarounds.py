"""Each workaround is still needed and works; a test that fails asks to look at it again."""

import inspect
import logging
import os
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle
from ray._private import services
from ray._private import worker as ray_worker
from ray.air.execution import FixedResourceManager
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.tune.execution.class_cache import _ActorClassCache
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.state import list_actors

from trainers.ray_trainer import torch_trainer
from tuning.execution import ray_workarounds
from tuning.execution.ray_session import ray_session
from tuning.execution.ray_workarounds import (
    TUNE_ENVIRONMENT,
    has_autoscaler,
    loopback_only,
    quiet_raylet,
    remove_orphaned_groups,
    tune_workarounds,
    without_helpers,
)
from tuning.execution.tasks import run_tasks


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
    """What Tune's callbacks get when a driver of a trial was killed for lack of memory."""
    manager, lost = RayActorManager(FixedResourceManager({"CPU": 1})), LostActor()
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    error = OutOfMemoryError("the node ran low on memory")
    getattr(manager, handler)(**{HANDLERS[handler]: lost, "exception": error})  # as Ray calls them
    return lost.errors


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.usefixtures("connected")
def test_tune_gets_an_actor_error_for_a_killed_driver(handler, monkeypatch):
    with tune_workarounds():
        errors = fail(handler, monkeypatch)
    assert errors
    assert all(type(error) is RayActorError for error in errors)
    message = str(cloudpickle.loads(cloudpickle.dumps(errors[0])))
    assert message == "OutOfMemoryError: the node ran low on memory"


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


def test_the_drivers_processes_are_no_warning(capsys):
    needed = inspect.getsource(ray_worker.listen_error_messages)
    assert "print_to_stdstream" in needed  # and not by the logger that `log_to_driver` silences
    many = "WARNING: 8 PYTHON worker processes have been started on node: 41d2 with address: ..."

    def publish(line):
        data = {"lines": [line], "pid": "raylet", "is_err": False, "job": None}
        ray_worker.print_to_stdstream(data, ignore_prefix=False)
        shown = capsys.readouterr()
        return shown.out + shown.err

    with quiet_raylet():
        assert publish(many) == ""
        assert "memory" in publish("2 workers killed due to memory pressure")
    assert "8 PYTHON worker" in publish(many)


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


def test_nothing_of_tune_stays_changed(monkeypatch):
    for name in TUNE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")

    def state():
        handlers = [getattr(RayActorManager, name) for name in HANDLERS]
        names = ray_workarounds.class_cache.ENV_VARS_TO_PROPAGATE
        return dict(os.environ), handlers, names, logging.getLogger("ray.tune").level

    before = state()
    with tune_workarounds():
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1"  # the user's own setting
        assert os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] == "1"
        assert logging.getLogger("ray.tune").level == logging.CRITICAL
    assert state() == before


def holder():
    """An actor with a placement group; a local class, so that its process imports nothing else."""

    class Holder:
        def hold(self, cpus=0.01):
            self.group = placement_group([{"CPU": cpus}])
            ray.get(self.group.ready())
            return str(self.group.id.hex())

    return ray.remote(num_cpus=0)(Holder).remote()


def groups():
    """State of each placement group."""
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


@pytest.mark.ray
def test_tasks_get_the_cpus_that_a_killed_actor_held(ray_head, monkeypatch):
    monkeypatch.setattr("tuning.execution.tasks.CHECK_S", 0.1)
    with ray_session(ray_head.address):
        killed = holder()
        ray.get(killed.hold.remote(2))
        ray.kill(killed)
        task = ray.remote(num_cpus=1)(lambda item: item + 1)
        found = []
        run_tasks([1, 2], task.remote, lambda _, ended: found.append(ray.get(ended)), at_once=1)
    assert found == [2, 3]


def test_helpers_of_ray_train_are_left_out(tmp_path):
    trainer = torch_trainer(print, {}, name="any", scratch=tmp_path)

    def callbacks():
        return [type(one).__name__ for one in trainer._create_default_callbacks()]

    before, left_out = callbacks(), ("DatasetsCallback", "PlacementGroupCleanerCallback")
    assert without_helpers(trainer) is trainer
    assert callbacks() == [name for name in before if name not in left_out] != before
    assert set(left_out) < set(before)  # Ray Train itself still adds both
    # It still asks for nodes; `test_warm_workers` has a slot that does not.
    assert "_send_resource_request" in inspect.getsource(FixedScalingPolicy.after_controller_start)


@pytest.mark.ray
def test_an_actor_controls_its_own_workers(ray_head, tmp_path):
    def actors(_):
        here = ray.get_runtime_context()
        filters = [("job_id", "=", here.get_job_id()), ("state", "=", "ALIVE")]
        return [actor.class_name for actor in list_actors(here.gcs_address, filters)]

    class Slot:
        def fit(self):
            trainer = torch_trainer(actors, {}, name="any", scratch=tmp_path)
            return without_helpers(trainer).fit().return_value

    with ray_session(ray_head.address):
        slot = ray.remote(Slot).remote()
        found = ray.get(slot.fit.remote())
    assert "RayTrainWorker" in found
    assert "TrainController" not in found
    # Ray Train itself still starts an actor.
    method = inspect.getsource(TorchTrainer._initialize_and_run_controller)
    assert ")(TrainController)" in method


@pytest.mark.nightly
@pytest.mark.parametrize("fails", ["on_start", "on_shutdown"])
def test_workers_whose_start_or_end_fails_leave_their_places(fails, ray_head, tmp_path):
    """Ray Train itself leaves them to the end of the process; it does not catch this error."""

    def fail(*_):
        raise OutOfMemoryError("killed")

    class Slot:
        def fit(self):
            setattr(import_module("trainers.ray_trainer")._NoProcessGroup, fails, fail)
            without_helpers(torch_trainer(print, {}, name="any", scratch=tmp_path)).fit()

    with ray_session(ray_head.address):
        before = set(placement_group_table())
        slot = ray.remote(Slot).remote()
        with pytest.raises(RayTaskError, match="killed"):
            ray.get(slot.fit.remote())
        (state,) = (g["state"] for k, g in placement_group_table().items() if k not in before)
        assert state == "REMOVED"


@pytest.mark.parametrize(("kind", "autoscales"), [("node_abc", False), ("gpu-workers", True)])
@pytest.mark.parametrize("version", [1, 2])
def test_an_autoscaler_names_its_node_types(kind, autoscales, version, monkeypatch):
    status = SimpleNamespace(active_nodes=[SimpleNamespace(ray_node_type_name=kind)], idle_nodes=[])
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    report = f'{{"autoscaler_report": {{"node_type_mapping": {{"127.0.0.1": "{kind}"}}}}}}'
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda **_: version == 2)
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda _: status)
    monkeypatch.setattr(ray_workarounds, "_internal_kv_get", lambda _: report.encode())
    assert has_autoscaler() is autoscales
