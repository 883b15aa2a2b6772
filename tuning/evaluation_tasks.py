"""OOD domains evaluated as Ray tasks while their trial trains on; its reports, whole and in order.

Where its workers find room in the cluster, they report to Ray Train without the OOD domains, and
leave the evaluated weights (`trainers.pending`). The driver of the trial is told, starts a task a
domain, puts the reports together and gives them to Tune in the order of steps, one complete report
a step as ever. The folder of a report goes once Tune has recorded it, and one that lacks nothing
gets a folder too where it has to wait: whatever kills the driver, the next one finds what is
missing, and reports it first.

Tasks that nobody waits for any more end with the driver, to which they belong: Tune removes the
placement group of a trial that it stops or that raised, and Ray the processes in it and of theirs.
They are not cancelled, for a task that ends just as it is (`ray.cancel`, Ray 2.60) kills the driver
by a check in Ray's core, and what it had to say is lost.

Ray Train's own `ValidationConfig` (alpha in 2.60) is not this: it evaluates one checkpoint at a
time, with no regard to room, tells no callback what it found, and passes over what failed.
"""

from __future__ import annotations

import json
import threading
from bisect import insort
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.train import UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.data.storage import Store, open_store
from trainers.errors import storage_failures
from trainers.pending import (
    PENDING,
    Evaluated,
    Pending,
    leave_complete,
    left_pending,
    read_pending,
    remove_all_pending,
    remove_pending,
)
from trainers.torch_trainer import PENDING_KEY
from tuning.checkpoint_files import fetched, read_json
from tuning.failures import in_one_line, storage_failure
from tuning.records import STEP
from tuning.restarts import fit

POLL_S = 0.2
"""From one look at training and tasks to the next."""
SPENT = "spent.json"
"""Beside the folders of reports: what the tasks of a trial have taken so far."""

Report: TypeAlias = dict[str, Any]


class EvaluationFailed(RuntimeError):
    """A task could not evaluate its domain; the message names which, and why."""


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
        Exception: what the training raised, or what `Reports.send_complete` makes of a task's; one
            is tried again once where its node or its process was lost.
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
    training = _in_background(train)
    while not (training.done() and reports.all_sent and queue.empty()):
        with suppress(Empty):
            reports.take(queue.get(timeout=POLL_S))
        reports.send_complete()
    training.result()


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
    def step(self) -> int:
        """Optimiser steps done."""
        step: int = self.report[STEP]
        return step

    @property
    def is_complete(self) -> bool:
        """Whether all of its tasks have ended."""
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
        self._waiting: list[_Waiting] = []
        self._taken = set[int]()
        self._sent = -1
        with storage_failures(store.url, "cannot be read"):
            self._spent: dict[str, float] = read_json(store, SPENT) or {}
        for pending in left_pending(store):
            self._take({STEP: pending.step, **pending.metrics}, pending)

    @property
    def all_sent(self) -> bool:
        """Whether no report waits."""
        return not self._waiting

    def take(self, report: Report) -> None:
        """Of a worker, as Ray Train was given it.

        Raises:
            StorageFailed: what waits cannot be written or read.
        """
        name = report.pop(PENDING_KEY, None)
        self._take(report, read_pending(self._store, name) if name else None)
        # A worker may have been lost between what it left and what it said of it. Later than here,
        # nobody comes to this step again, and the next driver would report it after later ones.
        waiting = {w.pending.name for w in self._waiting if w.pending is not None}
        remove_all_pending(self._store, report[STEP], but=waiting)

    def send_complete(self) -> None:
        """Send reports, up to the first that waits for tasks.

        Raises:
            EvaluationFailed: a task raised.
            StorageFailed: a task did not get its weights, or no room; or costs cannot be written.
            RayError: the process of a task was lost, twice.
        """
        while self._waiting and self._waiting[0].is_complete:
            first = self._waiting[0]
            self._send(self._with_costs(self._completed(first)))
            self._sent = first.step
            if first.pending is not None:
                remove_pending(self._store, first.pending.name)
            self._waiting.pop(0)

    def _take(self, report: Report, pending: Pending | None) -> None:
        # A worker that goes on from a checkpoint says again what it had said, and may train again
        # what led to the next report: the figures are the same. Of a step before one that was sent,
        # nothing can be: it would end the curve there.
        if report[STEP] in self._taken or report[STEP] < self._sent:
            if pending is not None:
                remove_pending(self._store, pending.name)
            return
        if pending is None and self._waiting:
            # The worker goes on, and would say again only the last of what this process alone knew.
            metrics = {name: value for name, value in report.items() if name != STEP}
            pending = leave_complete(self._store, report[STEP], metrics)
        self._taken.add(report[STEP])
        waiting = _Waiting(report, pending, self._start(pending) if pending else {})
        insort(self._waiting, waiting, key=lambda waiting: waiting.step)

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
        if waiting.pending is None or not waiting.tasks:
            return waiting.report
        found = {domain: _result(task, domain) for domain, task in waiting.tasks.items()}
        for name in ("cpu_seconds", "gpu_seconds"):
            spent = sum(getattr(evaluated, name) for evaluated in found.values())
            self._spent[name] = self._spent.get(name, 0.0) + spent
        with (
            storage_failures(self._store.url, "cannot be written"),
            self._store.write(SPENT) as file,
        ):
            file.write(json.dumps(self._spent).encode())
        measures = {domain: evaluated.measures for domain, evaluated in found.items()}
        return waiting.report | waiting.pending.completed(measures)

    def _with_costs(self, report: Report) -> Report:
        """With what tasks took, up to this report, beside what the workers did."""
        costs = {f"cost/{name}": seconds for name, seconds in self._spent.items()}
        return report | {name: report.get(name, 0.0) + value for name, value in costs.items()}


def _result(task: Any, domain: str) -> Evaluated:
    """What a task found.

    Ray raises what the task did, as an error of that type too: an OSError of data that cannot be
    read would pass for one of the checkpoints' storage, which ends the search.

    Raises:
        EvaluationFailed: it raised.
        StorageFailed: and it was this.
    """
    try:
        evaluated: Evaluated = ray.get(task)
        return evaluated
    except RayTaskError as error:
        if failure := storage_failure(error):
            raise failure from None
        raise EvaluationFailed(f"evaluation of {domain}: {in_one_line(error)}") from error


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
