"""Notices that the Ray of this driver is gone, which Ray itself does not report.

If the raylet of the driver's node was killed, Ray 2.60 waits for ever for a place for trials and
tasks. If the GCS was killed, it ends the driver's process after 60 s, with status 1 and without a
word to the records.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from trainers.errors import MAY_CONTINUE, StorageFailed
from tuning.execution.signals import interrupted_by_signals

CHECK_S, CHECKS = 2.0, 5
"""Interval between two checks, and the number of failed ones in a row after which Ray is lost."""
CONNECT_S = 5.0
HEAD = "head"


class RayLost(StorageFailed):
    """The head or the raylet of this machine is gone. Another Ray can go on with the work."""

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(f"Ray's {server} {problem}")
        self.server = server


@dataclass
class RayWatch:
    """Whether the processes of Ray that a driver needs are there."""

    servers: dict[str, tuple[str, int]]
    """Host and port by name."""
    go_on: str
    """Printed after the error if the head is gone."""
    lost: RayLost | None = None
    """Set once one is gone for good."""
    record_end: Callable[[], object] = lambda: None
    """Records the end of the work; called in the thread of this watch if the head is gone. The
    main thread then hangs in a call of Ray that no signal interrupts."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set at the end of the work; `run` then returns."""

    def check(self) -> None:
        """Raise `RayLost` if a server does not accept a connection."""
        for name, (host, port) in self.servers.items():
            try:
                socket.create_connection((host, port), timeout=CONNECT_S).close()
            except OSError as error:
                raise RayLost(name, f"at {host}:{port} is gone ({error})") from None

    def run(self) -> None:
        """Check until the end of the work, and end it if Ray is lost."""
        failed = 0
        while not self.ended.wait(CHECK_S):
            try:
                self.check()
                failed = 0
            except RayLost as error:
                failed += 1
                if failed == CHECKS and not self.ended.is_set():
                    self.lost = error
                    if error.server == HEAD:
                        self.record_end()
                        print(f"lipsum-tune: {error}; {self.go_on}", file=sys.stderr, flush=True)
                        os._exit(MAY_CONTINUE)  # Ray would do so soon, with status 1
                    if callable(signal.getsignal(signal.SIGTERM)):
                        # `_thread.interrupt_main` would interrupt no system call. Without a
                        # handler, the signal would kill the process.
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                    return


@contextmanager
def watched_ray(go_on: str = "run the command again") -> Iterator[RayWatch]:
    """Within the block, the loss of the connected Ray or SIGTERM interrupts the main thread.

    If the head is gone, the process ends with status `MAY_CONTINUE` instead.

    Args:
        go_on: what a user can do when Ray is lost, for the message.

    Raises:
        RayLost: the main thread was interrupted because Ray is lost.
        KeyboardInterrupt: for SIGTERM, as for Ctrl-C.
    """
    watch = RayWatch(_servers(), go_on)
    with interrupted_by_signals():
        threading.Thread(target=watch.run, name="ray-watch", daemon=True).start()
        try:
            yield watch
        except KeyboardInterrupt:
            if watch.lost is not None:
                raise watch.lost from None
            raise
        finally:
            watch.ended.set()


def _servers() -> dict[str, tuple[str, int]]:
    """Host and port of the processes of the connected Ray that this driver needs."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    node: dict[str, Any] = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
    raylet = node["NodeManagerAddress"], node["NodeManagerPort"]
    return {HEAD: (host.strip("[]"), int(port)), "raylet": raylet}
