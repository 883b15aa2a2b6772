"""Everything that relies on internals of Ray: nothing else may import them.

Each workaround names what goes wrong without it, the version of Ray that it was written for and
the issue, if there is one. Where a Ray lacks what one needs (`INTERNALS`), it is skipped, and the
log says once what that means. `tests/tuning/execution/test_ray_workarounds.py` has a test for each
that fails when it is no longer needed, or when it no longer works.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce, wraps
from importlib import import_module
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from tuning.execution.signals import environment_variables

logger = logging.getLogger(__name__)

INTERNALS: Final = {
    "draining nodes": (
        "ray._private.state:state",
        ("get_draining_nodes",),
        "the loss of a node that announced its end counts as a failure",
    ),
    "placement groups": (
        "ray._private.state:state",
        ("_connect_and_get_accessor",),
        "resources of killed trials may be lost until the search ends",
    ),
    "placement group table": (
        "ray.core.generated.gcs_pb2:PlacementGroupTableData",
        ("FromString", "REMOVED"),
        "resources of killed trials may be lost until the search ends",
    ),
    "helpers of trainings": (
        "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer",
        ("_create_default_callbacks",),
        "a training starts with two processes more",
    ),
    "loopback": (
        "ray._private.ray_constants",
        ("ENABLE_RAY_CLUSTER", "ENABLE_RAY_CLUSTERS_ENV_VAR"),
        "a Ray that is started here may listen on all network interfaces",
    ),
    "environment of trials": (
        "ray.tune.execution.class_cache",
        ("ENV_VARS_TO_PROPAGATE",),
        "AWS keys of this process may be written to Ray's logs",
    ),
    "errors of actors": (
        "ray.air.execution._internal:RayActorManager",
        ("_actor_task_failed", "_actor_start_failed"),
        "the search ends if the process of a trial is killed for want of memory",
    ),
}
"""What workarounds need: a module or an object in one, its attributes, and what is lost without."""

TUNE_ENVIRONMENT: Final = {
    # The tables, MLflow and the progress display replace Tune's own output.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # A report without the objective fails its trial. By default, it fails the search.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C ends the search as SIGTERM does. Tune would take 10 s to end the trials.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Settings of Tune for the time of a search; those in the user's environment take precedence."""

HELPERS: Final = {
    "DatasetsCallback": ("datasets", "_dataset_shard_provider"),
    "PlacementGroupCleanerCallback": ("placement_group_callback", "_stop_cleaner"),
}
"""Callbacks of Ray Train that start a process each: module and an attribute of a class, each of
which identifies it if its name has changed."""

_skipped: set[tuple[str, str]] = set()


def internal(name: str) -> Any | None:
    """An entry of INTERNALS; None, and a line in the log once, if this Ray lacks it."""
    path, attributes, loss = INTERNALS[name]
    module, _, inner = path.partition(":")
    try:
        found = reduce(getattr, filter(None, [inner]), import_module(module))
        for attribute in attributes:
            getattr(found, attribute)
    except (ImportError, AttributeError):
        _log_once(path, loss)
        return None
    return found


def _log_once(missing: str, loss: str) -> None:
    if (missing, loss) not in _skipped:
        _skipped.add((missing, loss))
        logger.warning("Ray %s has no %s as expected: %s", ray.__version__, missing, loss)


def draining_nodes() -> dict[str, int]:
    """Nodes that have announced their end, such as spot nodes, by Ray's identifier.

    The value is the time at which the node will be gone, as Unix time in milliseconds; 0 if it is
    not known. Ray 2.60 has no public function for the driver (added internally by ray#38096).
    """
    state = internal("draining nodes")
    return {} if state is None else state.get_draining_nodes()


def remove_orphaned_groups() -> None:
    """Remove the placement groups of this job whose actor is dead.

    Ray 2.60 keeps them until the job ends. Ray Train removes that of a killed controller through
    the state API, which is the dashboard's (ray#54305, ray#58515, ray#61756), and only if all
    workers had started (no issue found). Otherwise the resources are lost for the rest of the
    search, which then has a slot less, or none.
    """
    state, table = internal("placement groups"), internal("placement group table")
    if state is None or table is None:
        return
    job = ray.get_runtime_context().get_job_id()
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = table.FromString(content)
        # The groups of a driver have no actor, and that one counts as dead.
        is_orphan = group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil()
        is_left = not group.is_detached and group.state != table.REMOVED
        if is_orphan and is_left and group.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def without_helpers(trainer: Any) -> Any:
    """The same `TorchTrainer`, which starts two processes less with its workers.

    Ray Train 2.60 starts one for Ray Datasets, of which there are none, and one that asks the
    dashboard once a second whether to remove a placement group, which `remove_orphaned_groups`
    does. No setting prevents them (no issue found), and each takes 2 to 3 s of CPU time.
    """
    if internal("helpers of trainings") is not None:
        create = trainer._create_default_callbacks
        trainer._create_default_callbacks = lambda: _needed(create())
    return trainer


def _needed(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks without HELPERS. The log says once if one of these is not found."""
    for name, (module, attribute) in HELPERS.items():
        others = [
            one
            for one in callbacks
            if type(one).__name__ != name
            and type(one).__module__.rpartition(".")[2] != module
            and not hasattr(one, attribute)
        ]
        if len(others) == len(callbacks):
            _log_once(name, "a training starts with one process more")
        callbacks = others
    return [*callbacks]


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within the block, a Ray that is started listens on 127.0.0.1 alone, with all its processes.

    Ray 2.60 replaces `_node_ip_address="127.0.0.1"` by the machine's address, and then listens on
    all interfaces, except on macOS and Windows (ray#18730). The variable is for Ray's processes;
    this one has read it already.
    """
    constants = internal("loopback")
    if constants is None:
        yield
        return
    with ExitStack() as restore:
        restore.callback(setattr, constants, "ENABLE_RAY_CLUSTER", constants.ENABLE_RAY_CLUSTER)
        constants.ENABLE_RAY_CLUSTER = False
        variables = {constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
        restore.enter_context(environment_variables(variables))
        yield


def init(private: Mapping[str, Any], **public: Any) -> None:
    """`ray.init` with arguments that are not public; without them if this Ray does not know one."""
    try:
        ray.init(**public, **private)
    except (RuntimeError, TypeError) as error:
        if not any(name in str(error) for name in private):
            raise
        what = f"{', '.join(private)} of ray.init"
        logger.warning("Ray %s has no %s as expected: it uses defaults", ray.__version__, what)
        ray.init(**public)


def is_timeout(error: Exception) -> bool:
    """Whether Ray has started too slowly, as on a busy machine.

    Ray 2.60 has no setting for its 30 s, and no class for their end (no issue found).
    """
    return "timed out" in str(error).lower() or "start GCS" in str(error)


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
        if (class_cache := internal("environment of trials")) is not None:
            names = class_cache.ENV_VARS_TO_PROPAGATE
            restore.callback(setattr, class_cache, "ENV_VARS_TO_PROPAGATE", names)
            class_cache.ENV_VARS_TO_PROPAGATE = {n for n in names if not n.startswith("AWS_")}

        # Tune handles RayActorError and RayTaskError only. Any other RayError, such as the
        # OutOfMemoryError of a slot's process that was killed, would end its loop and with it the
        # search (Ray 2.60; no issue found).
        if (manager := internal("errors of actors")) is not None:
            for name in ("_actor_task_failed", "_actor_start_failed"):
                handler = getattr(manager, name)
                restore.callback(setattr, manager, name, handler)
                setattr(manager, name, _with_known_errors(handler))
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
