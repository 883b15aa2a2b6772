"""Connection to Ray: to a given cluster, or to one that is started for this search."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import ray
from rich.console import Console

from trainers.errors import ConfigError, first_line
from trainers.folders import temporary_folder
from trainers.ray_trainer import WORKER_ENVIRONMENT
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import (
    DRIVER_MEMORY,
    check_fits,
    fitting_drivers,
    fitting_trials,
)
from tuning.execution.ray_workarounds import has_autoscaler, loopback_only, quiet_raylet
from tuning.execution.signals import GC_THRESHOLD, environment_variables
from tuning.runs.run_folder import job_runs
from tuning.views.formatting import show_phase

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOCALHOST = "127.0.0.1"
CONNECT_S = 10
"""Seconds that a cluster may take to accept a connection."""
PREFIX = "lt-ray-"
"""Of the temporary folders of Rays that are started here."""
LONGEST_PARENT = 23
"""Most characters of the folder in which they are. Sockets have paths of at most 103 (macOS) or 107
characters, of which Ray's own names need 62, or 64 with process ids of seven digits."""
STARTS = 3
"""Number of attempts to start Ray."""


@contextmanager
def ray_session(address: str | None = None, *, console: Console | None = None) -> Iterator[bool]:
    """Connect to Ray within the block; a cluster that is started here is also stopped.

    The value is whether one is started here. A process that is connected already stays connected.

    Args:
        address: `host:port` of a cluster; by default the one in `RAY_ADDRESS`, which
            `ray job submit` sets, or a new one on this machine.
        console: for a line before it, since this takes seconds.

    Raises:
        ConfigError: nothing answers at that address, or Ray does not start here.
    """
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if console is not None:
        show_phase(console, "Ray", f"connecting to {address}" if address else "starting")
    with ExitStack() as stack:
        stack.enter_context(quiet_raylet())
        try:
            if address:
                _connect(address)
            else:
                retry_slow_start(lambda: _start_local(stack.enter_context(_temporary_folder())))
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
            raise ConfigError(f"cannot connect to {where}: {error}") from error
        stack.callback(ray.shutdown)
        yield not address


def runs_folder(storage: str) -> Path:
    """The absolute folder of `search.storage`, also in a Ray job (see `job_runs`).

    Raises:
        ConfigError: the storage is not absolute, and the cluster of RAY_ADDRESS does not answer.
    """
    folder, address = Path(storage).expanduser(), os.environ.get("RAY_ADDRESS", "")
    # Ray gives each job the address of its cluster, which is no URL.
    if address and "://" not in address and not folder.is_absolute():
        folder = job_runs(storage) if _is_rays(Path.cwd(), address) else folder
    return folder.resolve()


@cache
def _is_rays(folder: Path, address: str) -> bool:
    """Whether a folder is below Ray's temporary folder, as the working directory of a job is."""
    with ray_session(address):
        return folder.is_relative_to(Path(ray.get_runtime_context().get_temp_dir()).resolve())


def concurrent_trials(resources: ResourcesConfig) -> int:
    """Number of trials at a time: as many as fit, or as an autoscaler makes room for.

    No more than the head has memory for their drivers; the others would never start.

    Raises:
        ConfigError: not even one fits, and the cluster adds no nodes.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits, drivers = fitting_trials(nodes, resources), fitting_drivers(nodes)
    if has_autoscaler():
        wanted = resources.max_concurrent or max(fits, 1)
        if wanted > fits:
            logger.warning(
                "%d trial(s) fit into the cluster now; more, up to %d, wait until its autoscaler "
                "adds nodes",
                fits,
                wanted,
            )
    else:
        check_fits(nodes, resources)
        wanted = min(fits, resources.max_concurrent or fits)
    if drivers is None or wanted <= drivers:
        return wanted
    logger.warning(
        "%d instead of %d trial(s) run at once: the head's memory has no room for more drivers, "
        "which take %.1f GB each",
        drivers,
        wanted,
        DRIVER_MEMORY / 1e9,
    )
    return drivers


def retry_slow_start(start: Callable[[], T]) -> T:
    """Start something of Ray, and try again if it was too slow.

    Ray gives its own processes 30 s, which a busy machine, or one that reads Ray's files for the
    first time, may exceed.

    Raises:
        ConnectionError: it was too slow every time.
    """
    attempt = 1
    while True:
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray 2.60 raises a plain exception
                raise
            if attempt == STARTS:
                raise ConnectionError(f"{first_line(error)} Is this machine very busy?") from error
            attempt += 1
            logger.warning("Ray did not start in time on this busy machine; trying again")


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
            include_dashboard=False,  # nothing asks it, see `without_helpers`
            dashboard_host=LOCALHOST,
            _node_ip_address=LOCALHOST,  # a local search does not listen on the network
            # Ray 2.60 makes its folders writable for all users. They are below one that
            # only this user can enter.
            _temp_dir=str(folder / "r"),
        )
    with suppress(FileNotFoundError):
        (secrets / "auth_token").chmod(0o600)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for Ray's logs and sockets and its processes' own files; removed afterwards.

    After an error it is kept until the next start, since its logs may explain it.
    """
    usual = Path(tempfile.gettempdir())
    parent = usual if len(str(usual)) <= LONGEST_PARENT else Path("/tmp")
    # Release 0.2 renamed what it kept to `ray-...`. Ray's link in it still has the earlier name.
    for kept in parent.glob("ray-*"):
        with suppress(OSError):
            session = (kept / "session_latest").readlink()
            if session.parent.name.startswith(PREFIX) and kept.stat().st_uid == os.geteuid():
                shutil.rmtree(kept)
    with temporary_folder(PREFIX, parent) as folder:
        try:
            yield folder
        except Exception:
            folder.rename(parent / f"{folder.name}-failed")
            raise


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
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env, **arguments)
