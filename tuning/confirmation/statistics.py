"""Means over seeds with intervals of Student's t, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval, in the unit of the values."""

    mean: float
    sd: float
    """Sample standard deviation (n - 1 in the denominator); NaN for one seed."""
    low: float
    """Lower end of the interval; NaN for one seed."""
    high: float
    """Upper end of the interval; NaN for one seed."""


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95 % interval of independent, normal values, at least one."""
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan, math.nan)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, stdev(values), mean - margin, mean + margin)


def paired_difference(of: Mapping[int, float], against: Mapping[int, float]) -> Estimate:
    """The mean of `of` - `against`, seed by seed, over the seeds that both have.

    Both map seeds to values. Pairing removes the variation that two runs with the same seed share
    (batches, crops).
    """
    return estimate([value - against[s] for s, value in of.items() if s in against])
