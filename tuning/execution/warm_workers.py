"""Workers that train one trial after the other: a `TorchTrainer` that runs `serve`."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.errors import first_line
from trainers.exchange import END, Answer, Exchange, Request
from trainers.folders import temporary_folder
from trainers.ray_trainer import serve, torch_trainer
from tuning.execution.ray_workarounds import remove_orphaned_groups, without_helpers

logger = logging.getLogger(__name__)

POLL_S = 5.0
"""Time that `ask` waits for a report before it returns how far the trial is."""
ALIVE_S = 5.0
"""Time after which a worker that does not answer counts as hanging, not as lost."""
END_S = 20.0
"""Time that workers have to end. Those that need more end with the process that asked for them."""


class ReportOverdue(RuntimeError):
    """A training has not reported for far longer than reports take: it hangs."""


def end_if_overdue(exchange: Any, limit_s: float) -> None:
    """End workers that have trained for longer than a limit without a report.

    Those that were lost do not count: Ray Train replaces the workers of a node that had announced
    its end, as soon as there is a place for new ones.

    Args:
        exchange: handle of the workers' `Exchange`.

    Raises:
        ReportOverdue: they have, and are ended.
    """
    if (overdue := ray.get(exchange.overdue.remote(limit_s))) is None:
        return
    hanging = cloudpickle.loads(overdue)
    try:
        ray.get(hanging.__ray_ready__.remote(), timeout=ALIVE_S)
    except RayActorError:
        ray.get(exchange.lost.remote(overdue))
        return
    except GetTimeoutError:
        pass
    ray.kill(hanging)  # which ends all workers
    raise ReportOverdue(
        f"no report after {limit_s:.0f} s of training: it hangs, or search.resources.hang_after_s "
        "is too short"
    )


@contextmanager
def watched(limit_s: float | None) -> Iterator[Any]:
    """Within the block, workers train; if they hang, they are ended.

    The value is the handle of an `Exchange`, on which they start the clock of each report; None
    without a limit.

    Raises:
        ReportOverdue: in place of the error that the end of hanging workers causes.
    """
    if limit_s is None:
        yield None
        return
    exchange, ended, overdue = _start_exchange(), threading.Event(), list[ReportOverdue]()

    def watch() -> None:
        while not ended.wait(POLL_S):
            try:
                end_if_overdue(exchange, limit_s)
            except ReportOverdue as error:
                overdue.append(error)
                return
            except RayError as error:  # the exchange is lost, and the training is not
                logger.warning("a hang of this training will not be noticed: %s", first_line(error))
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield exchange
    except Exception as error:
        if overdue:
            raise overdue[0] from error
        raise
    finally:
        ended.set()


def _start_exchange() -> Any:
    """Handle of an `Exchange` on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote()


class WarmWorkers:
    """Workers that run one trial after the other.

    They start in the background. An error of one ends all, and the object cannot be used again.

    Args:
        options: arguments of `torch_trainer`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._exchange = _start_exchange()
        self._answer: Future[Answer] | None = None
        self._ended: Future[None] = Future()
        threading.Thread(target=self._run, args=(options,), daemon=True).start()

    def ask(self, request: Request, limit_s: float) -> Answer:
        """The next report of a trial, or the training curve since the last one: then ask again.

        Raises:
            ReportOverdue: they have trained for longer than the limit without a report.
            Exception: an error of `TorchTrainer.fit`.
        """
        answer = self._answer = self._answer or self._exchange.ask.remote(request).future()
        done, _ = wait([answer, self._ended], POLL_S, FIRST_COMPLETED)
        if answer in done:
            self._answer = None
            return answer.result()
        if self._ended in done:
            self._ended.result()
            raise RuntimeError("the workers have ended without a report")
        if ray.get(self._exchange.waits.remote()):
            remove_orphaned_groups()  # for which these workers may be waiting
        end_if_overdue(self._exchange, limit_s)
        progress: Answer = ray.get(self._exchange.progress.remote())
        return progress

    def end(self) -> None:
        """End the workers, and wait until their resources are free."""
        self._exchange.ask.remote(END)
        wait([self._ended], END_S)

    def _run(self, options: dict[str, Any]) -> None:
        values, name = {"exchange": self._exchange}, f"slot-{secrets.token_hex(4)}"
        try:
            with temporary_folder("lipsum-tune-train-") as scratch:
                trainer = torch_trainer(serve, values, name=name, scratch=scratch, **options)
                without_helpers(trainer).fit()
        except Exception as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
