"""A loop over Ray tasks that runs a given number of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import ray

from tuning.execution.ray_workarounds import remove_orphaned_groups

CHECK_S = 5.0
_STOPPING_S = 5.0

T = TypeVar("T")


def run_tasks(
    items: Iterable[T],
    submit: Callable[[T], Any],
    on_end: Callable[[T, Any], None],
    *,
    at_once: int,
) -> None:
    """Submit a task for each item, in order, and handle each one as it ends.

    An exception of `on_end` ends the loop. Running tasks then get a few seconds to end; they are
    not cancelled, since Ray 2.60 kills the driver (a failed check in its core) if a task ends just
    as it is cancelled. Those that are still running end with the connection to Ray.

    Args:
        items: one for each task.
        submit: starts the task of an item and returns its reference.
        on_end: called with the item and the reference, whose `ray.get` returns or raises at once.
        at_once: tasks submitted but not ended, at most.
    """
    waiting, running = deque(items), dict[Any, T]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                item = waiting.popleft()
                running[submit(item)] = item
            ended, _ = ray.wait(list(running), num_returns=1, timeout=CHECK_S)
            if not ended:
                remove_orphaned_groups()  # for which a task that trains may be waiting
            for task in ended:
                on_end(running.pop(task), task)
    finally:
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_STOPPING_S)
