"""What the next trial is expected to gain, by which `search.budget.worth` ends a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search_spaces import SearchSpace
from tuning.algorithms.gp_sampler import RobustGPSampler, compress_worse
from tuning.algorithms.studies import create_studies, is_inside, point_of
from tuning.runs.ranking import best_trial, misses
from tuning.runs.records import SearchRecord, TrialRecord


def expected_gain(
    search: SearchRecord, space: SearchSpace, finished: Sequence[TrialRecord], seed: int = 0
) -> float:
    """Most expected improvement of the objective over the best finished trial, in its unit.

    That of the robust Gaussian process, fitted to the objective whatever the sampler optimises, and
    maximised over the whole space. With constraints, times the probability that they are met.

    Args:
        search: with one objective.
        space: of one method.

    Returns:
        inf as long as no trial meets the constraints, or if there is nothing to model.
    """
    search = replace(search, sampler_metric="objective")
    inside = [r for r in finished if is_inside(point_of(r), space) and search.values(r)]
    best = best_trial(search, inside)
    if best is None or misses(search, inside)[best.trial_id]:
        return math.inf
    # The logarithm of the expected improvement in standard deviations of the values, at a proposal.
    logarithms: list[float] = []
    sampler = RobustGPSampler(reach=1.0, seed=seed, n_startup_trials=1, observe=logarithms.append)
    (study,) = create_studies(search, space, sampler).studies
    for record in inside:
        study.observe(replace(record, params=point_of(record)), record.trial_id)
    study.ask("next")
    if not logarithms:
        return math.inf  # nothing is varied
    values = np.array([search.values(record) for record in inside])
    return math.exp(logarithms[-1]) * float(compress_worse(values).std())
