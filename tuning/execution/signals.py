"""SIGTERM as Ctrl-C: clusters end a job with the one, people with the other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt, at once.

    There may be three seconds until SIGKILL (`ray job stop`), so nothing waits for trials to end in
    order, as Tune does at Ctrl-C: with the driver, Ray ends all that it started. To be entered
    within a connection to Ray, whose own handler would print what its threads were doing. In
    another thread than the main one, where no handler can be set, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
