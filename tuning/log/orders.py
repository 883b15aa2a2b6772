"""Orders to a running search, each a file of its run folder: `lipsum-tune control` adds them.

The driver writes each order into the journal, with the name of its file, before it follows it. So
none is followed twice, and none is lost if the driver is killed.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trainers.data.store import open_store
from trainers.errors import storage_failures
from tuning.log.history import History
from tuning.log.journal import Journal
from tuning.log.records import ParamValue

logger = logging.getLogger(__name__)

CONTROL_FOLDER = "control"
MOST_BYTES = 1_000_000
"""Of an order that are read."""
Order: TypeAlias = dict[str, Any]
"""`{"stop": "trial-007"}`, `{"enqueue": {"optim.lr": 3e-4}}` or `{"end": true}`."""


def send(run_folder: Path, order: Order) -> None:
    """Add an order for the driver of a search.

    Raises:
        StorageFailed: it cannot be written.
    """
    folder = run_folder / CONTROL_FOLDER
    name = f"{time.time_ns()}-{secrets.token_hex(4)}.json"
    with storage_failures(folder, "cannot be written"), open_store(folder).write(name) as file:
        file.write(json.dumps(order).encode())


def orders_in(run_folder: Path) -> list[str]:
    """The names of all orders, in the order in which they were sent.

    An `end` among those at the start of a session is no order to it: the session before has
    followed that, or ended by itself.
    """
    return sorted(path.name for path in (run_folder / CONTROL_FOLDER).glob("*.json"))


def recorded_orders(history: History) -> list[Order]:
    """The orders in a journal."""
    return [order for event in history.controls if (order := _order_of(event["order"]))]


def wanted_points(history: History) -> list[Mapping[str, ParamValue]]:
    """The points that were enqueued so far, with their method if several are compared."""
    return [order["enqueue"] for order in recorded_orders(history) if "enqueue" in order]


def _order_of(value: object) -> Order | None:
    """The value as an order; None if it is none. Other programs may have written it."""
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
        before: `orders_in` the run folder when the session began, before its preparation.
    """

    def __init__(
        self, run_folder: Path, journal: Journal, history: History, before: Collection[str] = ()
    ) -> None:
        self._run_folder = run_folder
        self._journal = journal
        self._before = before
        self._seen = {event.get("name") for event in history.controls}
        self.stopped = {order["stop"] for order in recorded_orders(history) if "stop" in order}
        """Trials that the user has stopped, in any session."""

    def new(self) -> Iterator[Order]:
        """The orders since the last call, each once it is in the journal."""
        for name in orders_in(self._run_folder):
            if name in self._seen:
                continue
            self._seen.add(name)
            path = self._run_folder / CONTROL_FOLDER / name
            if (order := _read(path)) is None:
                logger.warning("%s is no order", path)
                continue
            self._journal.controlled(order, name)
            if "stop" in order:
                self.stopped.add(order["stop"])
            if "end" not in order or name not in self._before:  # an older one ended another
                yield order


def _read(path: Path) -> Order | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return _order_of(json.loads(file.read(MOST_BYTES)))
    except (OSError, ValueError, RecursionError):
        return None
