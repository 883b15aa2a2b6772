"""Which finished trial has the best hyperparameters, and how sure that is.

One training is a noisy measure of its configuration. A Gaussian process through the final
objectives of all finished trials separates what changes with the hyperparameters from what changes
from one training to the next. It is guided by what the sampler optimises in place of the objective,
by default the NLL, which varies less. Beliefs are still too sure with few trials and much noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tuning.algorithms.gaussian_process import GaussianProcesses, GuidedProcesses, one_thread
from tuning.algorithms.gp_sampler import compress_worse
from tuning.runs.ranking import contenders
from tuning.runs.records import SearchRecord, TrialRecord

MIN_TRIALS: Final = 8
"""Finished trials from which on the noise can be told from the hyperparameters."""
MAX_TRIALS: Final = 100
"""Trials that are looked at, the best measured ones: the time grows with the cube of the number."""
_DRAWS: Final = 10_000
_LOG_RANGE: Final = 10.0
"""Positive values that span this factor are compared on a log scale."""


@dataclass(frozen=True)
class Belief:
    """The expected objective of one trial, and its chance of being the best one."""

    trial: TrialRecord
    mean: float
    """Expected objective of its hyperparameters."""
    chance: float
    """Probability that no other of the trials has better hyperparameters, 0 to 1."""


@one_thread()
def beliefs(search: SearchRecord, records: Sequence[TrialRecord]) -> tuple[Belief, ...]:
    """The trials to choose among, or the best `MAX_TRIALS` of them, best expectation first.

    Few trainings lie close to the ends of the ranges, so the expectation of a trial there is
    uncertain. It is easily the most probable best one, although others are expected to be better.

    Empty with several objectives or methods, a hyperparameter that is no number, none that varies,
    fewer than `MIN_TRIALS` trials, or equal scores.
    """
    pool = contenders(search, records, search.values)
    trials = [record for record in pool if record.outcome == "finished"]
    objective, *others = search.objectives
    if others or len(search.methods(records)) > 1 or len(trials) < MIN_TRIALS:
        return ()

    def score(record: TrialRecord) -> float:
        return objective.signed(record.metrics[objective.metric])

    trials = sorted(trials, key=lambda record: (-score(record), record.number))[:MAX_TRIALS]
    points = _points(trials)
    if points is None:
        return ()
    scores = compress_worse(np.array([[score(record)] for record in trials]))[:, 0]
    if not np.ptp(scores):
        return ()
    rng, guide = np.random.default_rng(0), _guide(search, trials)
    processes = (
        GaussianProcesses(points, scores, rng)
        if guide is None
        else GuidedProcesses(points, scores, guide, rng)
    )
    wins = np.bincount(processes.draw(_DRAWS).argmax(axis=1), minlength=len(trials))
    found = [
        Belief(trial, objective.signed(float(mean)), float(won) / _DRAWS)
        for trial, mean, won in zip(trials, processes.mean(points), wins, strict=True)
    ]
    return tuple(sorted(found, key=lambda b: (-objective.signed(b.mean), b.trial.number)))


def _guide(search: SearchRecord, trials: Sequence[TrialRecord]) -> np.ndarray | None:
    """Scores by what the sampler optimises, (trials,); None if that is the objective."""
    (told,) = search.sampler_objectives
    if told in search.objectives:
        return None
    values = [v for record in trials if (v := record.last(told.metric)) is not None]
    if len(values) < len(trials):
        return None
    return compress_worse(np.array([[told.signed(value)] for value in values]))[:, 0]


def _points(trials: Sequence[TrialRecord]) -> np.ndarray | None:
    """Hyperparameters that vary, each scaled to 0 to 1 over the trials, (trials, parameters)."""
    columns = []
    for key in sorted(trials[0].params):
        column = [record.params.get(key) for record in trials]
        if len(set(column)) == 1:
            continue
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in column):
            return None
        values = np.array(column, float)
        if values.min() > 0 and values.max() / values.min() >= _LOG_RANGE:
            values = np.log(values)
        columns.append((values - values.min()) / (values.max() - values.min()))
    return np.stack(columns, axis=1) if columns else None
