"""Ray tasks: a given number of them at a time, or one on each node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuning.execution.ray_workarounds import remove_orphaned_groups

CHECK_S = 5.0
"""Time between two looks for placement groups that a killed training has left."""
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


def ask_nodes(
    function: Callable[..., T], arguments: Mapping[str, Sequence[object]], deadline_s: float
) -> dict[str, T | Exception | None]:
    """Call a function on each node: its result or error, or None if it did not answer in time.

    `arguments` has those of each node by Ray's identifier; `deadline_s` holds for all together.
    """
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    tasks = {
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(*own): node_id
        for node_id, own in arguments.items()
    }
    _, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=deadline_s)
    answers: dict[str, T | Exception | None] = dict.fromkeys(arguments)
    for task, node_id in tasks.items():
        if task in late:
            ray.cancel(task, force=True)
            continue
        try:
            answers[node_id] = ray.get(task)
        except Exception as error:  # the node or its process died, or the function failed
            answers[node_id] = error
    return answers
