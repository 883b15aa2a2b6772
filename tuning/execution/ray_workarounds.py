"""Everything that relies on internals of Ray: nothing else may import them.

Each workaround names what goes wrong without it, the version of Ray that it was written for and
the issue, if there is one. What keeps Ray on loopback, secrets out of its logs, or a search from
being lost is looked up before anything starts, see `check_internals`; the rest are plain look-ups.
`tests/tuning/execution/test_ray_workarounds.py` has a test for each that fails when it is no longer
needed, or when it no longer works.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, Final

import ray
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from trainers.errors import ConfigError
from tuning.process import environment_variables

TESTED: Final = "2.60"
"""Version of Ray that has all internals."""
_CONSTANTS: Final = "ray._private.ray_constants"
_ACTORS: Final = "ray.air.execution._internal"
INTERNALS: Final = (
    (_CONSTANTS, "ENABLE_RAY_CLUSTER", "Ray would listen on the network"),
    (_CONSTANTS, "ENABLE_RAY_CLUSTERS_ENV_VAR", "Ray would listen on the network"),
    ("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", "Ray would log AWS keys"),
    (_ACTORS, "RayActorManager._actor_task_failed", "a search could be lost"),
    (_ACTORS, "RayActorManager._actor_start_failed", "a search could be lost"),
    ("ray._private.state", "GlobalState._connect_and_get_accessor", "a search could wait for ever"),
)
"""Module, name in it, and what would happen without."""

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


def check_internals() -> None:
    """Raise a ConfigError that names what this Ray lacks of INTERNALS."""
    for module, name, loss in INTERNALS:
        found: Any = import_module(module)
        for part in name.split("."):
            if not hasattr(found, part):
                problem = f"Ray {ray.__version__} has no {module}.{name}, and {loss}"
                raise ConfigError(problem, hint=f"pip install 'ray=={TESTED}.*'")
            found = getattr(found, part)


def remove_orphaned_groups() -> None:
    """Remove the placement groups of this job whose actor is dead.

    Ray 2.60 keeps them until the job ends. Ray Train removes that of a killed controller through
    the state API, which is the dashboard's (ray#54305, ray#58515, ray#61756), and only if all
    workers had started (no issue found). Otherwise the resources are lost for the rest of the
    search, which then has a slot less, or none.
    """
    from ray._private.state import state

    table: Any = import_module("ray.core.generated.gcs_pb2").PlacementGroupTableData
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
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    create = trainer._create_default_callbacks
    helpers = DatasetsCallback, PlacementGroupCleanerCallback
    trainer._create_default_callbacks = lambda: [
        one for one in create() if not isinstance(one, helpers)
    ]
    return trainer


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within the block, a Ray that is started listens on 127.0.0.1 alone, with all its processes.

    Ray 2.60 replaces `_node_ip_address="127.0.0.1"` by the machine's address, and then listens on
    all interfaces, except on macOS and Windows (ray#18730). The variable is for Ray's processes;
    this one has read it already.
    """
    from ray._private import ray_constants as constants

    with ExitStack() as restore:
        restore.callback(setattr, constants, "ENABLE_RAY_CLUSTER", constants.ENABLE_RAY_CLUSTER)
        constants.ENABLE_RAY_CLUSTER = False
        variables = {constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
        restore.enter_context(environment_variables(variables))
        yield


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
    from ray.tune.execution import class_cache

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
        # OutOfMemoryError of a slot's process that was killed, would end its loop and with it the
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
