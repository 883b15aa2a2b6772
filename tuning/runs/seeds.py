"""How sure the mean of a trial over its seeds is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from tuning.runs.records import SearchRecord, TrialRecord


def deviation_of_seeds(search: SearchRecord, records: Sequence[TrialRecord]) -> tuple[float, int]:
    """Standard deviation of the first objective between seeds, and its degrees of freedom.

    Pooled over the trials that have several; 0 and 0 if there is none.
    """
    metric = search.objectives[0].metric
    groups = [values for r in records if r.repetitions and (values := r.over_seeds(metric))]
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum((value - fmean(of)) ** 2 for of in groups for value in of)
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


def margin_of_mean(
    search: SearchRecord, records: Sequence[TrialRecord], record: TrialRecord
) -> float | None:
    """Half the 95 % interval of a trial's mean of the first objective; None with a single seed."""
    seeds = len(record.over_seeds(search.objectives[0].metric))
    if seeds < 2:
        return None
    from scipy.stats import t  # slow to import

    deviation, freedom = deviation_of_seeds(search, records)
    return float(t.ppf(0.975, freedom)) * deviation / math.sqrt(seeds)
