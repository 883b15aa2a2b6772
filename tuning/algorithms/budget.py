"""The budgets of a search, any of which ends it.

Everything is counted from the journal, so budgets continue through every resume. GPU-hours are
those that trials have reserved, including partial, failed and repeated trials and references.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from tuning.algorithms.expected_gain import expected_gain
from tuning.algorithms.pruning import LEAST_FINISHED
from tuning.config.schema import BudgetConfig, SearchFile
from tuning.runs.callbacks import Callback
from tuning.runs.history import History
from tuning.runs.ranking import best_trial, misses
from tuning.runs.records import SearchRecord, TrialRecord


class Budget(Callback):
    """Counts what a search has used, by the events of its trials.

    Args:
        search: its objectives and constraints decide whether the target is reached.
        clock: the one of the journal, by which the trials are timed.
        file: of the search, whose space and resources `worth` needs.
    """

    def __init__(
        self,
        config: BudgetConfig,
        search: SearchRecord,
        history: History,
        clock: Callable[[], float],
        file: SearchFile | None = None,
    ) -> None:
        self._config, self._search, self._clock, self._file = config, search, clock, file
        self._began = clock() - history.seconds
        self._ended_gpu_seconds = 0.0
        self._running: dict[str, TrialRecord] = {}
        self._finished: list[TrialRecord] = []
        self._best = -math.inf
        self._not_worth: str | None = None
        self._judged = 0
        self._failures = 0
        self.is_ended = False
        """Whether the user has ended the search by `lipsum-tune control`."""
        for record in history.records:
            self._count(record)

    def allows(self, number: int) -> bool:
        """Whether the trial of that number, counted from 0, may be proposed."""
        if self.is_used(number):
            return False
        self._judge()
        return self._not_worth is None

    def is_used(self, trainings: int) -> bool:
        """Whether no training may follow after so many, whatever it would be worth."""
        return trainings >= self._config.trials or self.over() is not None

    def share(self, trainings: int) -> float:
        """The largest share of a limit that so many trainings, and what they took, have used."""
        used = {"trials": trainings, **self._hours}
        limits = {name: getattr(self._config, name) for name in used}
        return max(used[name] / limit for name, limit in limits.items() if limit is not None)

    @property
    def ended_by(self) -> str | None:
        """The limit other than the number of trials that has ended the search, if one has."""
        return self.over() or self._not_worth

    def _judge(self) -> None:
        """Find out whether the next trial is worth its hours; once after each that finishes."""
        worth, finished = self._config.worth, self._finished
        if worth is None or self._file is None or len(finished) < LEAST_FINISHED:
            return
        if self._judged == len(finished):
            return
        self._judged = len(finished)
        resources = self._file.search.resources
        unit = "GPU" if resources.gpus_per_worker else "CPU"
        cpus = resources.workers * resources.cpus_per_worker
        hours = fmean(r.gpu_seconds(0) or cpus * (r.seconds or 0.0) for r in finished) / 3600
        gain = expected_gain(self._search, self._file.search_space(), finished)
        if gain < worth * hours:
            self._not_worth = (
                f"search.budget.worth = {worth:g}: the next trial is expected to gain "
                f"{gain / hours:.2g} per {unit}-hour"
            )

    def over(self) -> str | None:
        """Why the search must end now, before all its trials; None if it may continue."""
        config, first = self._config, self._search.objectives[0]
        if self.is_ended:
            return "`lipsum-tune control --end`"
        if self.is_broken:
            return f"{config.failures} trials failed in a row (search.budget.failures)"
        for name, used in self._hours.items():
            limit = getattr(config, name)
            if limit is not None and used >= limit:
                return f"search.budget.{name} = {limit:g} are used up"
        if config.target is not None and self._best >= first.signed(config.target):
            return f"search.budget.target = {config.target:g} is reached"
        return None

    @property
    def is_broken(self) -> bool:
        """Whether so many trials of this session have failed in a row that the cause is another."""
        return self._config.failures is not None and self._failures >= self._config.failures

    @property
    def _hours(self) -> dict[str, float]:
        """Hours of wall clock of all sessions and GPU-hours, under the names of their limits."""
        wall_s = self._clock() - self._began
        return {"hours": wall_s / 3600, "gpu_hours": self.gpu_seconds / 3600}

    @property
    def gpu_seconds(self) -> float:
        """GPUs times seconds of all attempts of all trials, up to now."""
        now = self._clock()
        return self._ended_gpu_seconds + sum(r.gpu_seconds(now) for r in self._running.values())

    def trial_started(self, record: TrialRecord) -> None:
        """Count its GPUs from now on. Its earlier attempts are part of the running record."""
        if record.trial_id not in self._running:  # otherwise its driver was lost, and it goes on
            self._ended_gpu_seconds -= record.earlier_gpu_seconds
        self._running[record.trial_id] = record

    def trial_ended(self, record: TrialRecord) -> None:
        """Count the end of a trial of this session. Those of earlier sessions are counted."""
        if self._running.pop(record.trial_id, None) is not None:
            self._count(record)
            self._failures = self._failures + 1 if record.outcome == "failed" else 0

    def _count(self, record: TrialRecord) -> None:
        self._ended_gpu_seconds += record.gpu_seconds(self._clock())
        if record.kind == "trial" and record.outcome == "finished":
            self._finished.append(record.compact)
            if self._config.target is None:
                return
            best = best_trial(self._search, self._finished)
            missed = misses(self._search, self._finished)
            if best is not None and not missed[best.trial_id]:
                self._best = (self._search.values(best) or (-math.inf,))[0]
