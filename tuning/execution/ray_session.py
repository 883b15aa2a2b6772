"""A connection to Ray: to the cluster that is asked for, or to one started for this search."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import ray

from trainers.errors import ConfigError, first_line
from trainers.ray_trainer import WORKER_ENVIRONMENT
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import check_fits, fitting_trials
from tuning.execution.ray_workarounds import has_autoscaler

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOCALHOST = "127.0.0.1"
ANSWER_S = 10
"""For how long a cluster may keep a first connection waiting."""
STARTS = 3
"""So often it is tried to start Ray, where it takes too long."""
_TOO_SLOW = "timed out during startup"
"""In what Ray says then."""


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Connect, and disconnect afterwards; a cluster started here is also stopped.

    A process that is connected already stays connected, to where it is.

    Args:
        address: of a running cluster, `host:port`; by default the one named by `RAY_ADDRESS`, which
            `ray job submit` sets, or else a new one on this machine alone.

    Raises:
        ConfigError: nothing answers at that address, or Ray does not start here.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _connect(address)
        else:
            patiently(_start_local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
        raise ConfigError(f"cannot connect to {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def concurrent_trials(resources: ResourcesConfig) -> int:
    """How many trials run at once: as many as fit, or as an autoscaler is to make room for.

    Raises:
        ConfigError: not even one fits, and no nodes are added; the message says what a trial takes
            and what there is.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = fitting_trials(nodes, resources)
    if not has_autoscaler():
        check_fits(nodes, resources)
        return min(fits, resources.max_concurrent or fits)
    wanted = resources.max_concurrent or max(fits, 1)
    if wanted > fits:
        logger.warning(
            "%d trial(s) fit into the cluster as it is; others, up to %d, wait for its autoscaler "
            "to add nodes",
            fits,
            wanted,
        )
    return wanted


def _connect(address: str) -> None:
    _refuse_silence(address)
    # A stopped trial's resources are freed through the state API, which its helper processes look
    # for at RAY_ADDRESS; `ray job submit` sets that for the entry point alone.
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {**WORKER_ENVIRONMENT, "RAY_ADDRESS": address}},
    )


def _refuse_silence(address: str) -> None:
    """Raise a ConnectionError where nothing listens: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return  # `auto`, or a URL: Ray knows how to take it
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            return
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error})") from None


def patiently(start: Callable[[], T]) -> T:
    """Start something of Ray, and again where it was too slow.

    Ray gives its own processes 30 s, which a machine that is busy, or reads its files for the first
    time, may miss.

    Raises:
        ConnectionError: it was too slow every time.
    """
    attempt = 1
    while True:
        try:
            return start()
        except Exception as error:  # of no type of its own
            if _TOO_SLOW not in str(error):
                raise
            if attempt == STARTS:
                raise ConnectionError(f"{first_line(error)} Is this machine very busy?") from error
            attempt += 1
            logger.warning("Ray did not start in time on this busy machine; once more")


def _start_local() -> None:
    # The port is chosen here because the workers must be told the address before it exists: with
    # a second Ray on this machine they would otherwise find the wrong one.
    port = free_port()
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    try:
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host=LOCALHOST,
            _node_ip_address=LOCALHOST,  # nothing of a local search is for the network
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {**WORKER_ENVIRONMENT, "RAY_ADDRESS": f"{LOCALHOST}:{port}"}},
        )
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"]


def free_port() -> int:
    """A port of loopback that nobody listens on, outside of those that Ray gives to its workers."""
    while True:
        with closing(socket.socket()) as callback:
            callback.bind((LOCALHOST, 0))
            port = int(callback.getsockname()[1])
        if port >= 20_000:
            return port
