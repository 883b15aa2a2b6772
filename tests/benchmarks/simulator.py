"""A search in simulated time: real searcher and scheduler objects, replayed learning curves.

Searcher and scheduler get the calls of a real search in its order, as the inline tuner of the tests
makes them, so what is measured is the code that users run and not a copy of it. Two things differ.
Time is counted and does not pass. And a trial is proposed when a device is free for it, where Tune,
unless concurrency is limited, keeps one more proposal in waiting.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal, Protocol

from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from tests.tuning.execution.inline_tuner import InlineTuner
from trainers.errors import TrainingDiverged


class Trainings(Protocol):
    """What trials report: recorded curves, or draws from a model of them."""

    def start(self, config):
        """The number of a training for a proposal, flat or nested, and its curve."""


@dataclass(frozen=True)
class Ended:
    trial_id: str
    """Tune's name."""
    configuration: int
    """Number of the training whose curve it was: of a table, the recorded configuration."""
    seconds: float
    """Simulated clock of the search, from its beginning."""
    step: int
    """At its last report."""
    outcome: Literal["finished", "stopped", "failed"]
    result: dict[str, Any]
    """The last report, flat; empty where it failed before the first."""


class _Timed(InlineTuner):
    """The trial whose report is due first reports next."""

    def __init__(self, train, steps, costs, **configs):
        super().__init__(train, **configs)
        self.clock, self._steps, self._costs = 0.0, steps, costs
        self._order = itertools.count()

    def next_to_report(self):
        trial = min(self._running, key=lambda trial: trial.due)
        self.clock, _ = trial.due
        return trial

    def _run_in_slot(self, trial):
        super()._run_in_slot(trial)
        trial.configuration = trial.slot.configuration
        starts_processes = len(self._trials) <= self._concurrent
        start = self._costs.start_seconds + starts_processes * self._costs.process_seconds
        self._expect(trial, 0, start)

    def _report(self, trial):
        super()._report(trial)
        if trial in self._running:
            self._expect(trial, trial.last_result["step"])

    def _expect(self, trial, step, start=0.0):
        following = next(later for later in self._steps if later > step)
        seconds = self._costs.interval(following - step, last=following == self._steps[-1])
        trial.due = self.clock + start + seconds, next(self._order)


def simulate(searcher, scheduler, trainings, costs, evaluate_at, gpus=1):
    """Run a search, yielding each trial as it ends, in the order of simulated time.

    It goes on until the searcher has finished, or until the caller stops reading.

    Args:
        searcher: proposes; its proposals, flat or nested, have the parameters of the trainings.
        scheduler: decides at each report but the last; one that stops trials, and pauses none.
        trainings: what the trials report.
        costs: how long they take for it.
        evaluate_at: the steps at which a trial evaluates itself and reports. A search pays for
            these alone: the rungs of its scheduler and the last step.
        gpus: devices, each for one trial at a time.
    """
    steps = sorted(set(evaluate_at))

    class Replayed:
        def setup(self, config):
            self.configuration, self._curve = trainings.start(config)
            self._left = list(steps)

        reset_config = setup

        def step(self):
            step = self._left.pop(0)
            if step not in self._curve:
                raise TrainingDiverged("as was recorded")
            return {**self._curve[step], "step": step, "done": not self._left}

    with TemporaryDirectory(prefix="simulator-") as folder:
        tuner = _Timed(
            Replayed,
            steps,
            costs,
            tune_config=SimpleNamespace(
                search_alg=searcher, scheduler=scheduler, max_concurrent_trials=gpus
            ),
            run_config=SimpleNamespace(
                callbacks=[],
                stop=None,
                storage_path=folder,
                failure_config=SimpleNamespace(max_failures=0),
            ),
        )
        for trial in tuner.run():
            result = flatten_dict(trial.last_result)
            step = int(result.get("step", 0))
            outcome = "finished" if step == steps[-1] else "stopped"
            if trial.status == Trial.ERROR:
                outcome = "failed"
            yield Ended(trial.trial_id, trial.configuration, tuner.clock, step, outcome, result)
