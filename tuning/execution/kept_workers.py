"""Workers that train one trial after the other: a `TorchTrainer` that runs `serve`."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.exchange import END, Answer, Exchange, Progressed, Request
from trainers.folders import temporary_folder
from trainers.ray_trainer import serve, torch_trainer
from tuning.execution.ray_workarounds import remove_orphaned_groups, without_helpers

POLL_S = 5.0
"""Time that `ask` waits for a report before it returns how far the trial is."""
START_S = 120.0
"""Time that workers need to start. If it takes longer, they wait for a place in the cluster."""
END_S = 20.0
"""Time that workers have to end. Those that need more end with the process that asked for them."""


class KeptWorkers:
    """Workers that run one trial after the other.

    They start in the background, with `options` of `torch_trainer`. An error of one ends all, and
    the object cannot be used again.
    """

    def __init__(self, hang_after_s: float, options: dict[str, Any]) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=here)
        self._exchange, self._name = actor.remote(), f"slot-{secrets.token_hex(4)}"
        self._request: Request | None = None
        self._answer: Future[Answer] | None = None
        self._began = time.monotonic()
        self._ended: Future[None] = Future()
        values = {"exchange": self._exchange, "hang_after_s": hang_after_s}
        threading.Thread(target=self._run, args=(values, options), daemon=True).start()

    @property
    def are_busy(self) -> bool:
        """Whether they have not answered the last request."""
        return self._answer is not None

    def ask(self, request: Request) -> Answer | Progressed:
        """The next report of a trial, or the training curve since the last one: then ask again.

        Another request withdraws one that is not answered. Errors are those of `TorchTrainer.fit`.
        """
        if request != self._request:
            self._request, self._answer = request, None
        answer = self._answer = self._answer or self._exchange.ask.remote(request).future()
        done, _ = wait([answer, self._ended], POLL_S, FIRST_COMPLETED)
        if answer in done:
            self._answer = None
            return answer.result()
        if self._ended in done:
            self._ended.result()
            raise RuntimeError("the workers have ended without a report")
        remove_orphaned_groups()  # for which these workers may be waiting
        progress: Progressed = ray.get(self._exchange.progress.remote())
        return replace(progress, waits=progress.waits and time.monotonic() - self._began > START_S)

    def end(self) -> None:
        """End the workers, and wait until their resources are free."""
        self._exchange.ask.remote(END)
        wait([self._ended], END_S)

    def _run(self, values: dict[str, Any], options: dict[str, Any]) -> None:
        try:
            with temporary_folder("lipsum-tune-train-") as scratch:
                trainer = torch_trainer(serve, values, name=self._name, scratch=scratch, **options)
                without_helpers(trainer).fit()
        except Exception as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
