"""Connection to Ray: to a given cluster, or to one that is started for this search."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from trainers.errors import MAY_CONTINUE, ConfigError, StorageFailed, first_line
from trainers.folders import temporary_folder
from trainers.ray_trainer import WORKER_ENVIRONMENT
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import check_fits, fitting_trials
from tuning.execution.ray_watch import RayLost
from tuning.execution.ray_workarounds import check_internals, is_timeout, loopback_only
from tuning.log.folder import job_runs
from tuning.process import GC_THRESHOLD, environment_variables

logger = logging.getLogger(__name__)

LOCALHOST = "127.0.0.1"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the entry point of a job."""
CONNECT_S = 10
"""Seconds that a cluster may take to accept a connection."""
PREFIX = "lt-ray-"
"""Of the temporary folders of Rays that are started here."""
LONGEST_PARENT = 23
"""Most characters of the folder in which they are. Sockets have paths of at most 103 (macOS) or 107
characters, of which Ray's own names need 62, or 64 with process ids of seven digits."""


@contextmanager
def ray_session(address: str | None = None, *, console: Console | None = None) -> Iterator[bool]:
    """Connect to Ray within the block; a cluster that is started here is also stopped.

    The value is whether one is started here. A process that is connected already stays connected.

    Args:
        address: `host:port` of a cluster; by default the one in `RAY_ADDRESS`, which
            `ray job submit` sets, or a new one on this machine.
        console: for a line before it, since this takes seconds.

    Raises:
        StorageFailed: it did not start in time, twice.
    """
    check_internals()
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if console is not None:
        what = f"connecting to {address}" if address else "starting"
        console.print(f"Ray         {what}", markup=False, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        try:
            if address:
                _connect(address)
            else:
                usual = Path(tempfile.gettempdir())
                parent = usual if len(str(usual)) <= LONGEST_PARENT else Path("/tmp")
                try:
                    _start_local(stack.enter_context(temporary_folder(PREFIX, parent)))
                except Exception as error:
                    if not is_timeout(error):
                        raise
                    logger.warning("Ray did not start in time, and is started again")
                    _start_local(stack.enter_context(temporary_folder(PREFIX, parent)))
        except Exception as error:
            where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
            if not address and is_timeout(error):
                problem = f"Ray did not start in time, twice: {first_line(error)}"
                raise StorageFailed(f"{problem} This machine may be too busy") from error
            raise ConfigError(f"cannot connect to {where}: {error}") from error
        leave: Callable[[], object] = ray.shutdown
        try:
            yield not address
        except RayLost:
            leave = partial(atexit.register, _end_without_ray)
            raise
        finally:
            leave()


def _end_without_ray() -> None:
    """End this process without Ray 2.60, which would end it with status 1.

    Without its head, it hangs first. Without its raylet, a call that still waits for it may end the
    process during a shutdown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(MAY_CONTINUE)


def runs_folder(storage: str) -> Path:
    """The absolute folder of `search.storage`, also in a Ray job (see `job_runs`)."""
    folder = Path(storage).expanduser()
    if JOB in os.environ and not folder.is_absolute():
        folder = job_runs(storage)
    return folder.resolve()


def concurrent_trials(resources: ResourcesConfig, *, is_own_ray: bool = False) -> int:
    """Number of trials at a time: as many as fit, or `max_concurrent`.

    On a given cluster, which may add nodes by itself, `max_concurrent` may be more than fit now.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits, most = fitting_trials(nodes, resources), resources.max_concurrent
    if most is None or is_own_ray:
        check_fits(nodes, resources)
        return min(fits, most or fits)
    if most > fits:
        logger.warning(
            "%d trial(s) fit into the cluster now; search.resources.max_concurrent = %d: the "
            "others wait until it has room",
            fits,
            most,
        )
    return most


def free_port() -> int:
    """A free port of the loopback interface, outside of the range that Ray gives to its workers."""
    while True:
        with closing(socket.socket()) as listener:
            listener.bind((LOCALHOST, 0))
            port = int(listener.getsockname()[1])
        if port >= 20_000:
            return port


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():  # neither `auto` nor a URL
        # Ray itself would try for minutes to connect to an address where nothing listens.
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers there ({error})") from None
    _init(address, address=address)


def _start_local(folder: Path) -> None:
    # The port is chosen here because workers need the address (see below) before it exists.
    port = free_port()
    variables = {
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_prestart_worker_first_driver": "0",  # actors have an environment of their own
        "TMPDIR": str(folder),
    }
    # Ray writes its token as the umask allows. Whoever reads it can run code in a cluster.
    secrets = Path.home() / ".ray"
    with suppress(OSError):
        secrets.mkdir(exist_ok=True)
        secrets.chmod(0o700)
    with environment_variables(variables), loopback_only():  # for all of Ray's processes
        _init(
            f"{LOCALHOST}:{port}",
            address="local",
            include_dashboard=False,  # nothing asks it
            dashboard_host=LOCALHOST,
            # A local search does not listen on the network. Ray 2.60 makes its folders writable
            # for all users, so they are below one that only this user can enter.
            _node_ip_address=LOCALHOST,
            _temp_dir=str(folder / "r"),
        )
    with suppress(FileNotFoundError):
        (secrets / "auth_token").chmod(0o600)


def _init(workers_address: str, **arguments: Any) -> None:
    """Connect to Ray, and give workers its address.

    Ray looks for it in `RAY_ADDRESS`, which `ray job submit` sets for the entry point only. Without
    it, a worker finds the wrong Ray if two run on a machine (ray#58515, ray#61756).
    """
    variables = {**WORKER_ENVIRONMENT, "RAY_ADDRESS": workers_address}
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if arguments["address"] == "local":
        # No node of such a cluster can announce its end, and the process that waits for that takes
        # a second of CPU time for each slot.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        # Not on other clusters, where a job may have a hook of its own: Ray accepts only one.
        runtime_env["worker_process_setup_hook"] = lambda: gc.set_threshold(GC_THRESHOLD)
    arguments |= {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(runtime_env=runtime_env, **arguments)
