"""Means over seeds, and how far they can be trusted: Student's t intervals, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in the unit of what was measured."""

    number: int
    """Seeds behind it."""
    mean: float
    sd: float
    """Of the sample, with n - 1 in the denominator; NaN for one seed."""
    half_width: float
    """The interval is mean +- this; NaN for one seed."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; of a difference, that it is more than noise
        of the seeds."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, standard deviation and interval: mean +- t(1 - (1 - c) / 2; n - 1) sd / sqrt(n).

    Args:
        values: one a seed, taken to be independent draws of a normal distribution.
        confidence: c, the share of such intervals that hold the true mean.

    Raises:
        ValueError: there are no values.
    """
    number = len(values)
    if number == 0:
        raise ValueError("no values to estimate a mean from")
    if number == 1:
        return Estimate(1, values[0], math.nan, math.nan)
    sd = stdev(values)
    quantile = float(student_t.ppf((1 + confidence) / 2, number - 1))
    return Estimate(number, fmean(values), sd, quantile * sd / math.sqrt(number))


def paired_difference(
    of: Mapping[int, float], against: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of the differences `of` - `against`, seed by seed, over the seeds that both have.

    What two runs of one seed share (the batches, the crops) cancels out, so the interval is
    narrower than that of two independent samples wherever the seeds' luck is alike.

    Args:
        of: value by seed.
        against: value by seed.
        confidence: as of `estimate`.

    Raises:
        ValueError: they have no seed in common.
    """
    return estimate([value - against[s] for s, value in of.items() if s in against], confidence)


def difference(
    of: Mapping[int, float], constant: float, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of the differences to a figure that no seed changes, such as the zero-shot model's.

    Raises:
        ValueError: there are no values.
    """
    return estimate([value - constant for value in of.values()], confidence)
