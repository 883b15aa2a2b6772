"""Seeds that are raced: the leading trials are repeated until one is likely the best.

The value of a single training is lucky where it is the best of many. The means over seeds have one
standard deviation between seeds for all trials, which is pooled over those with several.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Final

import numpy as np

from tuning.algorithms.budget import Budget
from tuning.config.schema import SeedsConfig
from tuning.runs.ranking import by_objectives, contenders, deviation_of_repeats
from tuning.runs.records import SearchRecord, TrialRecord

LEADERS: Final = 8
"""Trials whose weights are kept, since they may still become the best by their means."""
_FROM: Final = 2 / 3
"""Share of the budget that is for new points."""
_DRAWS: Final = 20_000
_COMPARED: Final = 50
"""Leading trials that are compared; those below them are not taken for the best."""


class SeedRace:
    """Chooses the repeats of a search.

    Args:
        base_seed: of its trials.
    """

    def __init__(
        self, config: SeedsConfig, search: SearchRecord, base_seed: int, budget: Budget
    ) -> None:
        self._config, self._search, self._budget = config, search, budget
        self._base_seed = base_seed
        self.ended_by: str | None = None
        """Why nothing is repeated any more, though the budget is not used up."""
        self.waits = False
        """Whether nothing is repeated before a trial that still trains has ended."""

    def begins(self, trainings: int, records: Sequence[TrialRecord]) -> bool:
        """Whether the next training after so many is a repeat, if any."""
        self.waits, self.ended_by = False, None
        if self._budget.is_used(trainings) or self._budget.share(trainings) < _FROM:
            return False
        trials = contenders(self._search, records, self._search.values)
        return len(trials) > 1 and trials[0].outcome == "finished"

    def next(self, records: Sequence[TrialRecord]) -> TrialRecord | None:
        """The next repeat: of the trial whose mean, with one more seed, most changes who wins.

        That is the expected gain of the best mean (a knowledge gradient), where a seed that still
        trains counts as if it had its trial's mean.

        Returns:
            None if the leader is likely enough the best, or no trial may have more seeds yet.
        """
        search, config = self._search, self._config
        trials = by_objectives(search, contenders(search, records, search.values))
        begun = Counter(record.repeats for record in records)
        is_settled = all(record.is_final for record in records if record.kind == "trial")
        if is_settled and (chance := chance_of_first(search, trials)) > config.confident:
            self.ended_by = (
                f"search.seeds.confident = {config.confident:g}: {trials[0].trial_id} is the best "
                f"trial with a probability of {chance:.2f}"
            )
            return None
        means = [sum(search.values(record) or ()) for record in trials]
        deviation, freedom = deviation_of_repeats(trials, search.objectives[0].metric)
        deviation = deviation if freedom else stdev(means[:LEADERS])
        normal = NormalDist()

        def gain(number: int) -> float:
            seeds = 1 + begun[trials[number].trial_id]
            # One more seed moves the mean by this standard deviation.
            move = deviation * math.sqrt(1 / seeds - 1 / (seeds + 1))
            if move == 0:
                return 0.0
            # Expected amount by which it passes the leader, or the leader falls below the second.
            z = abs(means[number] - means[0 if number else 1]) / move
            return move * (normal.pdf(z) - z * (1 - normal.cdf(z)))

        fewer = [n for n, r in enumerate(trials) if 1 + begun[r.trial_id] < config.max]
        if not fewer:
            self.waits = not is_settled  # what still trains may lead, and needs seeds then
            self.ended_by = f"search.seeds.max = {config.max}: all trials have so many"
            return None
        chosen = trials[max(fewer, key=gain)]
        used = {r.params["seed"] for r in records if r.repeats == chosen.trial_id}
        seed = next(s for s in itertools.count(self._base_seed + 1) if s not in used)
        name, params = f"{chosen.trial_id}-seed-{seed}", {**chosen.params, "seed": seed}
        return TrialRecord(name, chosen.number, "repeat", params, repeats=chosen.trial_id)


def chance_of_first(search: SearchRecord, trials: Sequence[TrialRecord]) -> float:
    """Probability that the first trial is better than all others, from the means over seeds.

    The variance between seeds is drawn as well, so that few repeats are not believed too much. 0
    as long as there is none.
    """
    metric, trials = search.objectives[0], trials[:_COMPARED]
    deviation, freedom = deviation_of_repeats(trials, metric.metric)
    if not freedom:
        return 0.0
    rng = np.random.default_rng(0)
    values = [record.over_seeds(metric.metric) for record in trials]
    variance = deviation**2 * freedom / rng.chisquare(freedom, size=(_DRAWS, 1))
    spread = np.sqrt(variance / np.array([len(of) for of in values]))
    means = np.array([metric.signed(fmean(of)) for of in values])
    drawn = means + spread * rng.standard_normal((_DRAWS, len(values)))
    return float((drawn.argmax(axis=1) == 0).mean())
