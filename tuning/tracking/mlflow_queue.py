"""Writes to MLflow that may have to wait: in order, in memory, until the server is back."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from tuning.tracking.mlflow_client import brief_requests, is_refusal, redact

_log = logging.getLogger(__name__)


class WriteQueue:
    """Does writes at once where it can, and never raises.

    A write is a function that may be called again after it failed half-way. One that fails for
    want of a server keeps its place, and those after it wait; one that the server refuses is
    dropped with a warning, since it would be refused for ever.

    Args:
        uri: The tracking URI, to be named in warnings.
        retry_seconds: While the server is away it is asked no more often than this, so that a
            search does not wait for a timeout at every report.
    """

    def __init__(self, uri: str, retry_seconds: float) -> None:
        self._uri = redact(uri)
        self._retry_seconds = retry_seconds
        self._pending: deque[Callable[[], None]] = deque()
        self._retry_at = 0.0
        self._refusals: set[str] = set()
        self.had_failure = False
        """Some write failed half-way: what it made may be there although nobody was told."""
        self._away = False

    def __len__(self) -> int:
        return len(self._pending)

    def append(self, write: Callable[[], None]) -> None:
        """Puts a write at the end of the queue; `flush` does it."""
        self._pending.append(write)

    def flush(self, now: bool = False) -> None:
        """Does all writes, or as many as the server takes; with `now`, asks it in any case."""
        if not self._pending or (not now and time.monotonic() < self._retry_at):
            return
        with brief_requests():
            while self._pending:
                try:
                    self._pending[0]()
                except Exception as error:
                    if not is_refusal(error):
                        self._wait(error)
                        return
                    self._drop(error)
                self._pending.popleft()
        if self._away:
            self._away = False
            _log.info("MLflow is back; the writes that waited for it are done.")

    def _wait(self, error: Exception) -> None:
        self.had_failure = True
        self._retry_at = time.monotonic() + self._retry_seconds
        if not self._away:
            self._away = True
            _log.warning(
                "MLflow at %s does not answer; the search goes on and writes to it later. %s",
                self._uri,
                redact(str(error))[:300],
            )

    def _drop(self, error: Exception) -> None:
        message = redact(str(error))[:500]
        if message not in self._refusals:
            self._refusals.add(message)
            _log.warning("MLflow at %s refused a write: %s", self._uri, message)
