"""A search in simulated time: real searcher and scheduler objects, replayed learning curves.

Stands in for Ray's `TuneController` and its cluster. Any `ray.tune.search.Searcher` and any
`TrialScheduler` that stops trials get the same calls in the same order as in a real search
(`TuneController._process_trial_result`, `stop_trial`, `_process_trial_failure`), so what is
measured is the code that users run and not a copy of it. Two things differ. Time is counted and
does not pass. And a trial is proposed when a device is free for it, where Tune, unless concurrency
is limited, keeps one more proposal in waiting.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import pickle
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from tests.benchmarks.curve_table import Curve
from trainers.errors import TrainingDiverged

ITERATION = "training_iteration"
NO_CONTROLLER: Final[Any] = None
"""Schedulers get it for a `TuneController`; those that stop trials do not ask it for anything."""


class Trainings(Protocol):
    """What trials report: recorded curves, or draws from a model of them."""

    @property
    def space(self):
        """The space that is searched."""

    def start(self, config):
        """The number of a training for a proposal, flat or nested, and its curve."""


@dataclass(frozen=True)
class Ended:
    """A trial that ended, by itself or not."""

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


class _Simulated(Trial):
    """Runs nowhere. What Tune would keep in a file, where it diverges, is there all the same."""

    @property
    def pickled_error_file(self):
        return _diverged()


@cache
def _diverged():
    folder = tempfile.mkdtemp(prefix="simulator-")
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "error.pkl"
    path.write_bytes(pickle.dumps(TrainingDiverged("as was recorded")))
    return str(path)


@dataclass
class _Run:
    """A trial on a device."""

    trial: Trial
    configuration: int
    curve: Curve
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self):
        return int(self.result.get("step", 0))

    def ended(self, seconds, outcome):
        return Ended(
            self.trial.trial_id, self.configuration, seconds, self.step, outcome, self.result
        )


def simulate(
    searcher,
    scheduler,
    table,
    costs,
    evaluate_at,
    gpus=1,
):
    """Run a search, yielding each trial as it ends, in the order of simulated time.

    It goes on until the searcher has finished, or until the caller stops reading.

    Args:
        searcher: proposes; its proposals, flat or nested, have the parameters of the table's space.
        scheduler: decides at each report.
        table: what the trials report.
        costs: how long they take for it.
        evaluate_at: the steps at which a trial evaluates itself and reports. A search pays for
            these alone: the rungs of its scheduler and the last step.
        gpus: devices, each for one trial at a time.

    Raises:
        NotImplementedError: the scheduler pauses a trial.
    """
    steps = sorted(set(evaluate_at))
    numbers, order = itertools.count(), itertools.count()
    reports: list[tuple[float, int, _Run]] = []  # a heap of when each running trial reports next
    clock, free, finished = 0.0, gpus, False
    while True:
        while free and not finished:
            number = next(numbers)
            trial_id = f"{number:08x}"
            config: Any = searcher.suggest(trial_id)  # typed as a dict, it may be FINISHED
            finished = config == Searcher.FINISHED
            if finished or config is None:  # None: nothing before another trial reports
                break
            keys = flatten_dict(config, delimiter=".").keys() & table.space.parameters.keys()
            assert keys == table.space.parameters.keys(), config
            run = _Run(_start(trial_id, config, scheduler), *table.start(config))
            start = costs.start_seconds + (costs.process_seconds if number < gpus else 0.0)
            at = clock + start + costs.interval(steps[0], last=len(steps) == 1)
            heapq.heappush(reports, (at, next(order), run))
            free -= 1
        if not reports:
            return
        clock, _, run = heapq.heappop(reports)
        step = next(step for step in steps if step > run.step)
        if ended := _process(run, step, steps[-1], clock, searcher, scheduler):
            free += 1
            yield ended
        else:
            following = next(later for later in steps if later > step)
            at = clock + costs.interval(following - step, last=following == steps[-1])
            heapq.heappush(reports, (at, next(order), run))


def _start(trial_id, config, scheduler):
    trial = _Simulated("simulated", config=config, trial_id=trial_id, stub=True)
    scheduler.on_trial_add(NO_CONTROLLER, trial)
    trial.set_status(Trial.RUNNING)
    return trial


def _process(
    run,
    step,
    last_step,
    clock,
    searcher,
    scheduler,
):
    """Give a report to scheduler and searcher; None where the trial goes on."""
    trial = run.trial
    if step not in run.curve:  # the recorded training diverged before it came so far
        trial.set_status(Trial.ERROR)
        scheduler.on_trial_error(NO_CONTROLLER, trial)
        searcher.on_trial_complete(trial.trial_id, error=True)
        return run.ended(clock, "failed")
    iteration = run.result.get(ITERATION, 0) + 1
    run.result = {
        **run.curve[step],
        "step": step,
        ITERATION: iteration,
        "trial_id": trial.trial_id,
    }
    decision = scheduler.on_trial_result(NO_CONTROLLER, trial, dict(run.result))
    if decision not in (TrialScheduler.CONTINUE, TrialScheduler.NOOP, TrialScheduler.STOP):
        raise NotImplementedError(f"{type(scheduler).__name__} wants to {decision} a trial")
    if decision != TrialScheduler.STOP:  # a result at which it stops comes with the end alone
        searcher.on_trial_result(trial.trial_id, dict(run.result))
        if step < last_step:
            return None
    run.result["done"] = True
    scheduler.on_trial_complete(NO_CONTROLLER, trial, dict(run.result))
    searcher.on_trial_complete(trial.trial_id, result=dict(run.result))
    trial.set_status(Trial.TERMINATED)
    return run.ended(clock, "finished" if step == last_step else "stopped")
