"""A question to each node of a cluster, as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

A = TypeVar("A")
T = TypeVar("T")


def ask_nodes(
    function: Callable[[A], T], argument: A, deadline_s: float
) -> dict[str, T | Exception | None]:
    """Call a function on each node: its result or error, or None if it did not answer in time.

    The keys are Ray's identifiers of the nodes that are alive; `deadline_s` holds for all together.
    """
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    tasks = {
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(argument): node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
    }
    _, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=deadline_s)
    answers: dict[str, T | Exception | None] = dict.fromkeys(tasks.values())
    for task, node_id in tasks.items():
        if task in late:
            ray.cancel(task, force=True)
            continue
        try:
            answers[node_id] = ray.get(task)
        except Exception as error:  # the node or its process died, or the function failed
            answers[node_id] = error
    return answers
