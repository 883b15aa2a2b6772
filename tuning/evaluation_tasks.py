"""OOD domains evaluated as Ray tasks while their trial trains on; its reports, whole and in order.

Where its workers find room in the cluster, they report to Ray Train without the OOD domains, and
leave the evaluated weights (`trainers.pending`). The driver of the trial is told, starts a task a
domain, puts the reports together and gives them to Tune in the order of steps, one complete report
a step as ever. The folder of a report goes once Tune has recorded it: whatever kills the driver,
the next one finds what is missing, and reports it first.

Ray Train's own `ValidationConfig` (alpha in 2.60) is not this: it evaluates one checkpoint at a
time, with no regard to room, tells no callback what it found, and passes over what failed.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import ray
from ray import tune
from ray.train import UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.data.storage import Store, open_store
from trainers.errors import storage_failures
from trainers.pending import (
    PENDING,
    Evaluated,
    Pending,
    left_pending,
    read_pending,
    remove_pending,
)
from trainers.torch_trainer import PENDING_KEY
from tuning.checkpoint_files import fetched, read_json
from tuning.records import STEP
from tuning.restarts import fit

POLL_S = 0.2
"""From one look at training and tasks to the next."""
SPENT = "spent.json"
"""Beside the folders of reports: what the tasks of a trial have taken so far."""

Report: TypeAlias = dict[str, Any]


def fit_with_tasks(
    config: Mapping[str, Any],
    *,
    name: str,
    storage_path: str,
    resources: Mapping[str, Any],
    new_tasks: bool = True,
) -> None:
    """Train a trial within a function of Tune, and report to Tune what it and its tasks measure.

    Args:
        config: of the trial, as plain values.
        name: of its folder.
        storage_path: folder or URL of all trials.
        resources: as of `tuning.restarts.fit`; a task takes as much as a worker.
        new_tasks: False settles what an earlier session left, and evaluates all else inline.

    Raises:
        Exception: what the training raised, or a task; a task is tried again once where its node
            or its process was lost.
    """
    folder, queue = open_store(f"{storage_path}/{name}"), _queue()
    cpus, gpus = resources["cpus_per_worker"], resources["gpus_per_worker"]
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(_evaluate)
    train = partial(
        fit,
        config,
        resources=resources,
        name=name,
        storage_path=storage_path,
        callbacks=[QueueReports(queue)],
        ood_tasks=new_tasks,
    )
    reports = Reports(config, folder.at(PENDING), task, tune.report)
    try:
        training = _in_background(train)
        while not (training.done() and reports.all_sent and queue.empty()):
            try:
                reports.take(queue.get(timeout=POLL_S))
            except Empty:
                reports.send_complete()
        training.result()
    except BaseException:  # Tune stops a trial with SystemExit
        reports.cancel()
        raise


def _queue() -> Queue:
    """On the driver's own node, with which it may be lost, and with no other."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def waits_for_tasks(name: str, storage_path: str) -> bool:
    """Whether an earlier session left reports of the trial that are not complete."""
    return bool(left_pending(open_store(f"{storage_path}/{name}/{PENDING}")))


class QueueReports(UserCallback):
    """Gives what Ray Train is told to the driver of the trial.

    Args:
        queue: to the driver.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        """The first worker's report: all say the same, and it alone leaves weights for others.

        What has no step was only saved, between two evaluations.
        """
        if STEP in metrics[0]:
            self._queue.put(metrics[0])


@dataclass
class _Waiting:
    """A report on its way to Tune."""

    report: Report
    pending: Pending | None = None
    tasks: dict[str, Any] = field(default_factory=dict)
    """By domain."""

    @property
    def is_complete(self) -> bool:
        tasks = list(self.tasks.values())
        return not tasks or not ray.wait(tasks, num_returns=len(tasks), timeout=0)[1]


class Reports:
    """The reports of one trial in the order of steps: one that waits for tasks holds up the next.

    Args:
        config: of the trial, as plain values.
        store: where its workers leave weights; what an earlier driver left there comes first.
        task: `_evaluate` as a remote function.
        send: is given each report, and returns once it is recorded.
    """

    def __init__(
        self, config: Mapping[str, Any], store: Store, task: Any, send: Callable[[Report], object]
    ) -> None:
        self._config, self._store, self._task, self._send = dict(config), store, task, send
        self._waiting: deque[_Waiting] = deque()
        self._last_step = -1
        with storage_failures(store.url, "cannot be read"):
            self._spent: dict[str, float] = read_json(store, SPENT) or {}
        for pending in left_pending(store):
            self._take({STEP: pending.step, **pending.metrics}, pending)

    @property
    def all_sent(self) -> bool:
        """Whether no report waits."""
        return not self._waiting

    def take(self, report: Report) -> None:
        """Of a worker, as Ray Train was given it."""
        name = report.pop(PENDING_KEY, None)
        self._take(report, read_pending(self._store, name) if name else None)

    def send_complete(self) -> None:
        """Send reports, up to the first that waits for tasks.

        Raises:
            Exception: what a task raised.
        """
        while self._waiting and self._waiting[0].is_complete:
            first = self._waiting[0]
            self._send(self._with_costs(self._completed(first)))
            if first.pending is not None:
                remove_pending(self._store, first.pending.name)
            self._waiting.popleft()

    def cancel(self) -> None:
        """End the tasks: nobody will ask what they found."""
        for task in [task for waiting in self._waiting for task in waiting.tasks.values()]:
            ray.cancel(task)

    def _take(self, report: Report, pending: Pending | None) -> None:
        # A worker that goes on from a checkpoint says again what it had said, and may train again
        # what led to the next report: the figures are the same.
        again = report[STEP] <= self._last_step
        if again and pending is not None:
            remove_pending(self._store, pending.name)
        if again:
            return
        self._last_step = report[STEP]
        self._waiting.append(_Waiting(report, pending, self._start(pending) if pending else {}))

    def _start(self, pending: Pending) -> dict[str, Any]:
        return {domain: self._start_one(pending, domain) for domain in pending.ood_domains}

    def _start_one(self, pending: Pending, domain: str) -> Any:
        task = self._task.options(
            name=f"evaluate {domain} at step {pending.step}",
            # Without this it would have to fit into what is reserved for the driver.
            scheduling_strategy="DEFAULT",
        )
        url = f"{self._store.url}/{pending.name}"
        return task.remote(self._config, url, domain, pending.temperature)

    def _completed(self, waiting: _Waiting) -> Report:
        if waiting.pending is None:
            return waiting.report
        found: list[Evaluated] = ray.get(list(waiting.tasks.values()))
        for name in ("cpu_seconds", "gpu_seconds"):
            self._spent[name] = self._spent.get(name, 0.0) + sum(getattr(e, name) for e in found)
        with (
            storage_failures(self._store.url, "cannot be written"),
            self._store.write(SPENT) as file,
        ):
            file.write(json.dumps(self._spent).encode())
        measures = {d: e.measures for d, e in zip(waiting.tasks, found, strict=True)}
        return waiting.report | waiting.pending.completed(measures)

    def _with_costs(self, report: Report) -> Report:
        """With what tasks took, up to this report, beside what the workers did."""
        costs = {f"cost/{name}": seconds for name, seconds in self._spent.items()}
        return report | {name: report.get(name, 0.0) + value for name, value in costs.items()}


def _evaluate(config: Mapping[str, Any], url: str, domain: str, temperature: float) -> Evaluated:
    """What a task runs."""
    from trainers.config import TrialConfig
    from trainers.deferred import evaluate_domain
    from trainers.errors import validate

    with fetched(open_store(url)) as folder:
        return evaluate_domain(validate(TrialConfig, config, "trial"), folder, domain, temperature)


def _in_background(function: Callable[[], object]) -> Future[None]:
    """Run it in a thread that does not keep the process from ending."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return future
