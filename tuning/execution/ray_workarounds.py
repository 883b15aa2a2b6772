"""Everything in the driver that relies on internals of Ray: nothing else may import them.

Each workaround names what goes wrong without it, the version of Ray that it was written for and
the issue, if there is one. `tests/tuning/execution/test_ray_workarounds.py` has a test for each
that fails when it is no longer needed, or when it no longer works.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Final

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.state import state
from ray.air.execution._internal import RayActorManager
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.experimental.internal_kv import _internal_kv_get
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.tune.execution import class_cache
from ray.util.placement_group import PlacementGroup, remove_placement_group

from tuning.execution.signals import environment_variables

__all__ = [
    "WorkerHealthCheckTimeoutError",
    "draining_nodes",
    "has_autoscaler",
    "loopback_only",
    "quiet_raylet",
    "remove_orphaned_groups",
    "tune_workarounds",
    "without_helpers",
]

TUNE_ENVIRONMENT: Final = {
    # The tables, MLflow and the progress display replace Tune's own output.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # A report without the objective fails its trial. By default, it fails the search.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Settings of Tune for the time of a search; those in the user's environment take precedence."""


_MANY_PROCESSES: Final = "worker processes have been started on node"


def draining_nodes() -> dict[str, int]:
    """Nodes that have announced their end, such as spot nodes, by Ray's identifier.

    The value is the time at which the node will be gone, as Unix time in milliseconds; 0 if it is
    not known. Ray 2.60 has no public function for the driver (added internally by ray#38096).
    """
    nodes: dict[str, int] = state.get_draining_nodes()
    return nodes


def has_autoscaler() -> bool:
    """Whether the connected cluster adds nodes on demand.

    Every head of Ray 2.60 runs an autoscaler, and no public function tells whether it can add
    nodes (no issue found). If it cannot, it invents one node type per node, `node_...`. Otherwise
    the types are those that the configuration of KubeRay or of the cluster launcher names.
    """
    # Imported here: the processes of trials import this module too, and this takes 0.1 s.
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        kinds = [n.ray_node_type_name for n in (*status.active_nodes, *status.idle_nodes)]
    else:
        report_json = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
        report: dict[str, Any] = json.loads(report_json or "{}").get("autoscaler_report") or {}
        kinds = list((report.get("node_type_mapping") or {}).values())
    return any(not kind.startswith("node_") for kind in kinds)


def remove_orphaned_groups() -> None:
    """Remove the placement groups of this job whose actor is dead.

    Ray 2.60 keeps them until the job ends. Ray Train removes that of a killed controller through
    the state API, which is the dashboard's (ray#54305, ray#58515, ray#61756), and only if all
    workers had started (no issue found). Otherwise the resources are lost for the rest of the
    search, which then has a slot less, or none.
    """
    job = ray.get_runtime_context().get_job_id()
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        # The groups of a driver have no actor, and that one counts as dead.
        is_orphan = group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil()
        is_left = not group.is_detached and group.state != PlacementGroupTableData.REMOVED
        if is_orphan and is_left and group.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def without_helpers(trainer: Any) -> Any:
    """The same `TorchTrainer`, which starts fewer processes with its workers.

    Ray Train 2.60 starts four that no setting prevents (no issue found). One holds the Ray
    Datasets, of which there are none. One asks the dashboard once a second whether to remove a
    placement group, which `remove_orphaned_groups` does. One, for all trainings of a cluster, asks
    for nodes. Each takes 2 to 3 s of CPU time for a search of minutes, and the dashboard takes as
    much to answer. The fourth is the controller, which takes as long to start, and 380 MB. Within
    an actor, such as a slot of a search, it runs in the thread that calls `fit`. Elsewhere it needs
    an actor of its own, since workers get a handle of the actor in which the controller runs.
    """
    callbacks = trainer._create_default_callbacks
    left_out = (DatasetsCallback, PlacementGroupCleanerCallback)
    trainer._create_default_callbacks = lambda: [
        callback for callback in callbacks() if not isinstance(callback, left_out)
    ]
    run_controller = trainer._initialize_and_run_controller

    def run(**arguments: Any) -> Any:
        policy = arguments["scaling_policy"]
        # The policy of elastic trainings also asks how many workers fit.
        if isinstance(policy, FixedScalingPolicy) and not has_autoscaler():
            vars(policy).update(
                after_controller_start=lambda train_run_context: None,
                _maybe_send_resource_request=lambda: None,
            )
        if ray.get_runtime_context().get_actor_id() is None:
            return run_controller(**arguments)
        controller: Any = TrainController(**arguments)
        controller.worker_group_cls = _FreedGroup
        try:
            asyncio.run(controller.run())
        finally:
            if (group := controller.get_worker_group()) is not None:
                group.free()
        return controller.get_result()

    trainer._initialize_and_run_controller = run
    return trainer


class _FreedGroup(WorkerGroup):
    """Workers that end, and whose places are freed, even if their start or their end fails.

    Ray Train 2.60 leaves that to the end of the controller's process (no issue found), for instance
    if PyTorch's process group cannot start, or if a worker was killed for want of memory. The next
    attempt in the process would wait for their places for ever.
    """

    def _start(self) -> None:
        try:
            super()._start()
        except BaseException:
            self.free()
            raise

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        if self.has_started():
            self.abort()


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within the block, a Ray that is started listens on 127.0.0.1 alone, with all its processes.

    Ray 2.60 replaces `_node_ip_address="127.0.0.1"` by the machine's address, and then listens on
    all interfaces, except on macOS and Windows (ray#18730). The variable is for Ray's processes;
    this one has read it already.
    """
    constant = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment_variables({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant


@contextmanager
def quiet_raylet() -> Iterator[None]:
    """Within the block, the driver does not print that a node has started many processes.

    Ray 2.60 prints this on every machine with few CPUs, whatever `log_to_driver` says (ray#3644).
    A trial has processes that wait and need no CPU: its driver, and others of Ray Train.
    """
    print_lines = ray_worker.print_to_stdstream

    def print_others(data: dict[str, Any], *arguments: Any, **named: Any) -> None:
        lines = [line for line in data["lines"] if _MANY_PROCESSES not in str(line)]
        if lines:
            print_lines({**data, "lines": lines}, *arguments, **named)

    ray_worker.print_to_stdstream = print_others
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = print_lines


@contextmanager
def tune_workarounds() -> Iterator[None]:
    """Within the block, Tune is set up as a search needs it. All is restored afterwards.

    A `Tuner` must be created and fitted within the block.
    """
    with ExitStack() as restore:
        restore.enter_context(environment_variables(TUNE_ENVIRONMENT, override=False))

        # Tune logs each failed trial with a traceback. The search reports it in one line.
        tune_logger = logging.getLogger("ray.tune")
        restore.callback(tune_logger.setLevel, tune_logger.level)
        tune_logger.setLevel(logging.CRITICAL)

        # Tune copies the driver's AWS keys into the runtime environment of its trials, which Ray
        # writes to its logs and shows on its dashboard (Ray 2.60; ray#28276, ray#39502 are about
        # secrets in runtime environments). Trials use the keys in the environment of their node.
        names = class_cache.ENV_VARS_TO_PROPAGATE
        restore.callback(setattr, class_cache, "ENV_VARS_TO_PROPAGATE", names)
        class_cache.ENV_VARS_TO_PROPAGATE = {n for n in names if not n.startswith("AWS_")}

        # Tune handles RayActorError and RayTaskError only. Any other RayError, such as the
        # OutOfMemoryError of a trial's driver that was killed, would end its loop and with it the
        # search (Ray 2.60; no issue found).
        for name in ("_actor_task_failed", "_actor_start_failed"):
            handler = getattr(RayActorManager, name)
            restore.callback(setattr, RayActorManager, name, handler)
            setattr(RayActorManager, name, _with_known_errors(handler))
        yield


def _with_known_errors(handler: Callable[..., None]) -> Callable[..., None]:
    """Turn errors of Ray that Tune does not handle into a RayActorError."""

    @wraps(handler)
    def handle(*arguments: Any, exception: Exception, **named: Any) -> None:
        known = RayActorError | RayTaskError
        if isinstance(exception, RayError) and not isinstance(exception, known):
            exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
        handler(*arguments, exception=exception, **named)

    return handle
