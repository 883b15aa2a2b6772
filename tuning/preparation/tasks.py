"""The shards as tasks of Ray, one CPU each, on whatever machines there are."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from trainers.data.encoding import EncodeOptions
from trainers.data.formats.retry import SourceLost, require_source
from trainers.data.shards import Shard, ShardReport
from trainers.data.storage import Store, open_store
from tuning.execution.ray_errors import in_one_line, root_cause

_AHEAD = 2  # tasks in flight for each CPU: one runs, one waits for it
_STOPPING_S = 5.0
_STORAGE_VARIABLES = ("AWS_", "AZURE_", "GCS_", "GOOGLE_", "HF_", "STORAGE_")


Report = TypeVar("Report", ShardReport, ShardReport | None)


class PreparationFailed(RuntimeError):
    """A shard could not be made; those that are finished stay."""


def run_shards(
    source: str,
    destination: str,
    shards: Sequence[Shard],
    options: EncodeOptions,
    make: Callable[[Store, Store, Shard, EncodeOptions], Report],
    on_end: Callable[[Shard, Report], None],
) -> None:
    """Make or check the shards in parallel, in their order; needs a connection to Ray.

    Args:
        source: URL or absolute path, which every machine of the cluster reaches.
        destination: the same of the data set that is made.
        shards: the files to be.
        options: what is done to every image.
        make: what is to be done with each: `make_shard`, or only to see whether it is `up_to_date`.
        on_end: called here with each shard as it ends.

    Raises:
        PreparationFailed: at the first shard that fails; the message is one sentence.
    """
    task: Any = ray.remote(num_cpus=1)(_make)
    fixed = ray.put((source, destination, options, _storage_environment(), make))
    at_once = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, running = deque(shards), dict[Any, Shard]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                shard = waiting.popleft()
                running[task.remote(fixed, shard)] = shard
            (ended,), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(ended)
            try:
                report = ray.get(ended)
            except SourceLost as error:
                raise PreparationFailed(str(root_cause(error))) from error
            except Exception as error:
                raise PreparationFailed(f"{shard.path}: {in_one_line(error)}") from error
            on_end(shard, report)
    finally:
        # Not cancelled: a task that ends as it is cancelled kills this process, by a check in Ray's
        # core. What is not done by then ends with the connection, and leaves no half of a shard.
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_STOPPING_S)


def _make(
    fixed: tuple[str, str, EncodeOptions, Mapping[str, str], Callable[..., Report]], shard: Shard
) -> Report:
    source, destination, options, environment, make = fixed
    with _added_to_environment(environment):
        origin = open_store(source)
        require_source(origin)
        return make(origin, open_store(destination), shard, options)


@contextmanager
def _added_to_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """What a machine says itself stays; the next task may bring keys that are newer."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _storage_environment() -> dict[str, str]:
    """How storage is reached from here. It goes to the workers as a task's argument, since Ray
    writes a runtime environment, with the keys that may be in it, to its logs and its dashboard."""
    return {
        name: value for name, value in os.environ.items() if name.startswith(_STORAGE_VARIABLES)
    }
