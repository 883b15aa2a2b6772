"""A search in simulated time: real searcher and scheduler objects, replayed learning curves.

Searcher and scheduler get the calls of Ray Tune in its order, so those of Ray can be compared with
the studies of this project. Two things differ. Time is counted and does not pass. And a trial is
proposed when a device is free for it, where Tune, unless concurrency is limited, keeps one more
proposal in waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

CONTROLLER = None
"""Schedulers that stop trials, and searchers, do not ask Tune's controller for anything."""


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
    steps, order, running, names = sorted(set(evaluate_at)), count(), [], count()
    clock, started, is_exhausted = 0.0, 0, False

    def expect(trial, start=0.0):
        """Note when the next report of a trial is due."""
        step = next(later for later in steps if later > trial.step)
        seconds = costs.interval(step - trial.step, last=step == steps[-1])
        heappush(running, (clock + start + seconds, next(order), trial, step))

    while running or not is_exhausted:
        while len(running) < gpus and not is_exhausted:
            trial_id = f"{next(names):05d}"
            config = searcher.suggest(trial_id)
            is_exhausted = config == Searcher.FINISHED
            if is_exhausted or config is None:
                break
            trial = Trial("simulated", config=config, trial_id=trial_id, stub=True)
            trial.configuration, trial.curve = trainings.start(config)
            trial.step, started = 0, started + 1
            scheduler.on_trial_add(CONTROLLER, trial)
            expect(trial, costs.start_seconds + (started <= gpus) * costs.process_seconds)
        if not running:
            continue
        clock, _, trial, step = heappop(running)
        if step not in trial.curve:  # it diverged, as was recorded
            scheduler.on_trial_error(CONTROLLER, trial)
            searcher.on_trial_complete(trial.trial_id, error=True)
            yield _ended(trial, clock, "failed")
            continue
        trial.step, is_last = step, step == steps[-1]
        result = {**trial.curve[step], "step": step, "done": is_last}
        result |= {"training_iteration": steps.index(step) + 1, "trial_id": trial.trial_id}
        goes_on = not is_last and (
            scheduler.on_trial_result(CONTROLLER, trial, result) != TrialScheduler.STOP
        )
        trial.update_last_result({**result, "done": not goes_on})
        if goes_on:
            searcher.on_trial_result(trial.trial_id, result)
            expect(trial)
            continue
        last = flatten_dict(trial.last_result)
        scheduler.on_trial_complete(CONTROLLER, trial, last)
        searcher.on_trial_complete(trial.trial_id, result=last)
        yield _ended(trial, clock, "finished" if is_last else "stopped")


def _ended(trial, clock, outcome):
    result = flatten_dict(trial.last_result) if trial.step else {}
    return Ended(trial.trial_id, trial.configuration, clock, trial.step, outcome, result)
