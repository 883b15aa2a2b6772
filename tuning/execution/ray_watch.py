"""Notices that the Ray of this driver is gone, which Ray itself does not report to Tune.

If the raylet of the driver's node was killed, Tune 2.60 waits for ever for a place for its trials.
If the GCS was killed, Ray ends the driver's process after 60 s, with status 1 and without a word to
the records.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from trainers.errors import MAY_CONTINUE, StorageFailed

CHECK_S, CHECKS = 2.0, 5
"""Interval between two checks, and the number of failed ones in a row after which Ray is lost."""
CONNECT_S = 5.0
HEAD = "head"


class RayLost(StorageFailed):
    """The head or the raylet of this machine is gone. The search can be resumed on another Ray."""

    server = ""


@dataclass
class RayWatch:
    """Whether the processes of Ray that a driver needs are there."""

    servers: dict[str, tuple[str, int]]
    """Host and port by name."""
    lost: RayLost | None = None
    """Set once one is gone for good."""
    end_here: Callable[[RayLost], None] | None = None
    """Records the end of the search; called in the thread of this watch if the head is gone. The
    main thread then hangs in a call of Ray that no signal interrupts."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set at the end of the search; `run` then returns."""

    def check(self) -> None:
        """Raise `RayLost` if a server does not accept a connection."""
        for name, address in self.servers.items():
            try:
                socket.create_connection(address, timeout=CONNECT_S).close()
            except OSError as error:
                host, port = address
                lost = RayLost(f"Ray's {name} at {host}:{port} is gone ({error})")
                lost.server = name
                raise lost from None

    def run(self) -> None:
        """Check until the end of the search, and end it if Ray is lost."""
        failed = 0
        while not self.ended.wait(CHECK_S):
            try:
                self.check()
                failed = 0
            except RayLost as error:
                failed += 1
                if failed == CHECKS:
                    self.lost = error
                    if error.server == HEAD and self.end_here is not None:
                        self.end_here(error)
                        os._exit(MAY_CONTINUE)  # Ray would do so soon, with status 1
                    _thread.interrupt_main(signal.SIGTERM)
                    return


@contextmanager
def watched_ray() -> Iterator[RayWatch]:
    """Within the block, the loss of the connected Ray raises KeyboardInterrupt in the main thread.

    Enter it within `tuning.execution.signals.interrupted_by_sigterm`.
    """
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    node: dict[str, Any] = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
    raylet = node["NodeManagerAddress"], node["NodeManagerPort"]
    watch = RayWatch({HEAD: (host.strip("[]"), int(port)), "raylet": raylet})
    threading.Thread(target=watch.run, name="ray-watch", daemon=True).start()
    try:
        yield watch
    finally:
        watch.ended.set()
