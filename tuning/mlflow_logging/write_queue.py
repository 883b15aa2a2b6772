"""Writes to MLflow on a thread of their own: in order, and nobody waits for a server.

One queue, one writer. Whoever runs the search appends and goes on at once; the writer takes from
the front, and a write that fails for want of a server keeps its place until the server is back. The
thread lives only while there is something to write.

What waits is as much as the search has reported since the server went away, some kilobytes a
report; the journal has it too, so nothing is lost where the process ends first.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from tuning.mlflow_logging.client import is_refusal
from tuning.security.redaction import redact

_log = logging.getLogger(__name__)
_FINISHING_RETRY_S = 1.0


class WriteQueue:
    """Does writes in their order, later where it must, and never raises.

    A write is a function that may be called again after it failed half-way. It runs on the writer's
    thread, one at a time. One that the server refuses is dropped with a warning, since it would be
    refused for ever.

    Args:
        uri: The tracking URI as configured, to be named in warnings.
        retry_seconds: While the server is away it is asked so often.
    """

    def __init__(self, uri: str, retry_seconds: float) -> None:
        self._uri = uri
        self._retry_seconds = retry_seconds
        self._changed = threading.Condition()  # guards all that follows
        self._pending: deque[Callable[[], None]] = deque()
        self._writer: threading.Thread | None = None
        self._num_done = 0
        self._finishing = False
        self._closed = False
        self._away = False  # the writer's own, as is the next
        self._refusals: set[str] = set()

    def __len__(self) -> int:
        return len(self._pending)

    def append(self, write: Callable[[], None]) -> None:
        """Puts a write at the end of the queue; returns at once."""
        with self._changed:
            self._pending.append(write)
            if self._writer is None and not self._closed:
                self._writer = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
                self._writer.start()

    def finish(self, patience_seconds: float) -> bool:
        """Waits until all is written; False where no write was done for so long, or at Ctrl-C."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()  # a writer that waits asks at once
            try:
                while self._pending:
                    done = self._num_done
                    if not self._changed.wait_for(
                        lambda done=done: self._num_done > done,  # type: ignore[misc]
                        patience_seconds,
                    ):
                        return False
            except KeyboardInterrupt:
                return False
            finally:
                self._finishing = False
        return True

    def close(self) -> None:
        """Begins no further write; one that hangs is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (write := self._next()) is not None:
            try:
                write()
            except Exception as error:
                if not is_refusal(error):
                    self._wait(error)
                    continue
                self._drop(error)
            else:
                self._answered()
            with self._changed:
                self._pending.popleft()
                self._num_done += 1
                self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            if self._pending and not self._closed:
                return self._pending[0]
            self._writer = None
            return None

    def _wait(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            _log.warning(
                "MLflow at %s does not answer; the search goes on and writes to it later. %s",
                redact(self._uri),
                " ".join(redact(str(error), self._uri).split())[:300],
            )
        with self._changed:
            # Only `finish` and `close` end the wait: an append must not, or the server would be
            # asked at every report.
            if not self._closed:
                retry = self._retry_seconds
                self._changed.wait(min(retry, _FINISHING_RETRY_S) if self._finishing else retry)

    def _answered(self) -> None:
        if self._away:
            self._away = False
            _log.warning("MLflow at %s answers again; it gets what waited.", redact(self._uri))

    def _drop(self, error: Exception) -> None:
        message = " ".join(redact(str(error), self._uri).split())[:500]
        if message not in self._refusals:
            self._refusals.add(message)
            _log.warning("MLflow at %s refused a write: %s", redact(self._uri), message)
