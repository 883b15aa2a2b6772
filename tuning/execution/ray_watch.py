"""Notices that the Ray of this driver is gone, which Ray itself does not report.

If the raylet of the driver's node was killed, Ray 2.60 waits for ever for a place for trials and
tasks. If the GCS was killed, its calls hang, and after 60 s it ends the driver's process.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray

from trainers.errors import StorageFailed
from tuning.process import interrupted_by_signals

T = TypeVar("T")

CHECK_S, CHECKS = 2.0, 5
"""Interval between two checks, and the number of failed ones in a row after which Ray is lost."""
CONNECT_S = 5.0
STOP_S = 2.0
"""Time that an interrupted call has to end. `ray job stop` kills the process a second later."""


class RayLost(StorageFailed):
    """The head or the raylet of this machine is gone. Another Ray can go on with the work."""


@dataclass
class RayWatch:
    """Whether the processes of Ray that a driver needs are there."""

    servers: dict[str, tuple[str, int]]
    """Host and port by name."""
    lost: Future[None] = field(default_factory=Future)
    """Raises `RayLost` once one is gone for good."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set at the end of the work; `run` then returns."""

    def check(self) -> None:
        """Raise `RayLost` if a server does not accept a connection."""
        for name, (host, port) in self.servers.items():
            try:
                socket.create_connection((host, port), timeout=CONNECT_S).close()
            except OSError as error:
                raise RayLost(f"Ray's {name} at {host}:{port} is gone ({error})") from None

    def run(self) -> None:
        """Check until the end of the work, or until Ray is lost."""
        failed = 0
        while not self.ended.wait(CHECK_S):
            try:
                self.check()
                failed = 0
            except RayLost as error:
                failed += 1
                if failed == CHECKS:
                    self.lost.set_exception(error)
                    return

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that waits for Ray, in a thread that is left behind if Ray is lost.

        Raises:
            RayLost: Ray is lost, and the function still waits for it.
            KeyboardInterrupt: this thread was interrupted. `raise_interrupt` ends the other one.
        """
        done: Future[T] = Future()

        def work() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, name="ray-calls", daemon=True).start()
        either: list[Future[Any]] = [done, self.lost]
        try:
            wait(either, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt:
            wait([done], STOP_S)
            raise
        if not done.done():
            self.lost.result()
        return done.result()


@contextmanager
def watched_ray() -> Iterator[RayWatch]:
    """Within the block, the connected Ray is watched, and SIGTERM is a KeyboardInterrupt."""
    watch = RayWatch(_servers())
    with interrupted_by_signals():
        threading.Thread(target=watch.run, name="ray-watch", daemon=True).start()
        try:
            yield watch
        finally:
            watch.ended.set()


def _servers() -> dict[str, tuple[str, int]]:
    """Host and port of the processes of the connected Ray that this driver needs."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    node: dict[str, Any] = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
    raylet = node["NodeManagerAddress"], node["NodeManagerPort"]
    return {"head": (host.strip("[]"), int(port)), "raylet": raylet}
