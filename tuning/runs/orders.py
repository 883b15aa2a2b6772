"""Orders to a running search, in a file of its run folder: `lipsum-tune control` adds lines to it.

The driver writes each order into the journal, with the place in the file up to which it has read,
before it follows it. So none is followed twice, and none is lost if the driver is killed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from trainers.errors import storage_failures
from tuning.runs.history import History
from tuning.runs.journal import Journal, append_synced
from tuning.runs.records import ParamValue

logger = logging.getLogger(__name__)

CONTROL_FILE = "control.jsonl"
LONGEST_LINE = 1_000_000
_COMPARED: Final = 200
"""Bytes at the begin of the file by which another one in its place is noticed."""
Order: TypeAlias = dict[str, Any]
"""`{"stop": "trial-007"}`, `{"enqueue": {"optim.lr": 3e-4}}` or `{"end": true}`."""


def send(run_folder: Path, order: Order) -> None:
    """Add an order for the driver of a search.

    Raises:
        StorageFailed: the file cannot be written.
    """
    path = run_folder / CONTROL_FILE
    with storage_failures(path, "cannot be written"), path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        ends_torn = file.read(1) not in (b"", b"\n")  # a line of a sender that was killed
        append_synced(file, b"\n" * ends_torn + f"{json.dumps(order)}\n".encode())


def size_of_orders(run_folder: Path) -> int:
    """Bytes of the file of orders. An `end` within those at the start of a session is no order to
    it: the session before has followed that, or ended by itself."""
    path = run_folder / CONTROL_FILE
    return path.stat().st_size if path.is_file() else 0


def _begin_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_COMPARED)
    except FileNotFoundError:
        return b""


def recorded_orders(history: History) -> list[Order]:
    """The orders in a journal."""
    return [order for event in history.controls if (order := _order_of(event["order"]))]


def wanted_points(history: History) -> list[Mapping[str, ParamValue]]:
    """The points that were enqueued so far, with their method if several are compared."""
    return [order["enqueue"] for order in recorded_orders(history) if "enqueue" in order]


def _order_of(value: object) -> Order | None:
    """The value as an order; None if it is none. The file may have lines of other programs."""
    match value:
        case {"stop": str(trial_id)}:
            return {"stop": trial_id}
        case {"enqueue": dict(params)}:
            is_point = all(isinstance(one, str | int | float) for one in params.values())
            return {"enqueue": params} if is_point else None
        case {"end": True}:
            return {"end": True}
    return None


class Orders:
    """The orders to one session.

    Args:
        history: with the orders to earlier sessions.
        before: `size_of_orders` when the session began, before its preparation.
    """

    def __init__(
        self, run_folder: Path, journal: Journal, history: History, before: int = 0
    ) -> None:
        self._path = run_folder / CONTROL_FILE
        self._journal = journal
        self._before = before
        self._read = history.controls[-1]["read"] if history.controls else 0
        """Place in the file of orders up to which it was read."""
        self._begin = _begin_of(self._path)
        self.stopped = {order["stop"] for order in recorded_orders(history) if "stop" in order}
        """Trials that the user has stopped, in any session."""

    def new(self) -> Iterator[Order]:
        """The orders since the last call, each once it is in the journal."""
        size, begin = size_of_orders(self._path.parent), _begin_of(self._path)
        if size < self._read or not begin.startswith(self._begin):
            logger.warning("%s was replaced: it is read from its beginning", self._path)
            self._read = self._before = 0
        self._begin = begin
        if size <= self._read:
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            is_damaged = False
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    break  # the rest of it comes later
                self._read += len(line)
                if (order := _parsed(line)) is None:
                    is_damaged = True
                    continue
                self._journal.controlled(order, self._read)
                if "stop" in order:
                    self.stopped.add(order["stop"])
                if "end" not in order or self._read > self._before:  # an older one ended another
                    yield order
        if is_damaged:
            logger.warning("%s: what is no order is left out", self._path)


def _parsed(line: bytes) -> Order | None:
    try:
        return _order_of(json.loads(line))
    except (ValueError, RecursionError):
        return None
