"""The process of a search: signals, garbage collection, and what a search must leave as it was."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

GC_THRESHOLD: Final = 20_000
"""For `gc.set_threshold` in the processes of the command line and of a local Ray. They import half
a million objects, and with the default (700; 2,000 from Python 3.13) garbage is collected over and
over while they do."""


_interrupted = threading.Event()


def raise_interrupt() -> None:
    """Raise KeyboardInterrupt in a thread that waits for Ray, once the main thread has got one."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT raise KeyboardInterrupt immediately.

    A Ray Tune that ran earlier in this process has replaced the handler of SIGINT by one that does
    nothing any more. Shells have commands in the background ignore SIGINT; they go on doing so.

    SIGKILL may follow after three seconds (`ray job stop`), so trials are not ended in order; Ray
    ends all processes with the driver. Enter the block within a connection to Ray, because Ray's
    own handler would print stack traces. Handlers can be set in the main
    thread only; in another thread, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number, handler in before.items():
            if number == signal.SIGTERM or handler != signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    finally:
        _interrupted.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def environment_variables(variables: Mapping[str, str], *, override: bool = True) -> Iterator[None]:
    """Set environment variables for the block; without `override`, only those that are not set."""
    new = {k: v for k, v in variables.items() if override or k not in os.environ}
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def restored_process() -> Iterator[None]:
    """After the block, environment, log levels, handlers of logs and signals are as before it.

    Ray 2.60 and MLflow 3.17 change them in the process that uses them and do not restore them.
    open_clip calls `logging.info`, which gives a root logger without handlers one, so that
    `logging.basicConfig` would do nothing any more.
    """
    environment, handlers = dict(os.environ), list(logging.root.handlers)
    names = ["", *logging.root.manager.loggerDict]
    levels = {name: logging.getLogger(name).level for name in names}
    is_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    signals = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        logging.root.handlers[:] = handlers
        for number, handler in signals.items():
            signal.signal(number, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
