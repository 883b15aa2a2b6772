"""A question to each node of a cluster, as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")


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
