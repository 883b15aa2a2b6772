"""The budgets of a search, any of which ends it.

Everything is counted from the journal, so budgets continue through every resume. GPU-hours are
those that trials have reserved, including partial, failed and repeated trials and references.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tuning.config.schema import BudgetConfig
from tuning.runs.callbacks import Callback
from tuning.runs.journal import History
from tuning.runs.ranking import best_trial, misses
from tuning.runs.records import SearchRecord, TrialRecord


class Budget(Callback):
    """Counts what a search has used, as a callback.

    Args:
        search: its objectives and constraints decide whether the target is reached.
        clock: the one of the journal, by which the trials are timed.
    """

    def __init__(
        self,
        config: BudgetConfig,
        search: SearchRecord,
        history: History,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._search, self._clock = config, search, clock
        self._began = clock() - history.seconds
        self._ended_gpu_seconds = 0.0
        self._running: dict[str, TrialRecord] = {}
        self._finished: list[TrialRecord] = []
        self._best = -math.inf
        self._failures = 0
        self.is_ended = False
        """Whether the user has ended the search by `lipsum-tune control`."""
        for record in history.records:
            self._count(record)

    def allows(self, number: int) -> bool:
        """Whether the trial of that number, counted from 0, may be proposed."""
        return number < self._config.trials and self.over() is None

    def over(self) -> str | None:
        """Why the search must end now, before all its trials; None if it may continue."""
        config, first = self._config, self._search.objectives[0]
        if self.is_ended:
            return "lipsum-tune control --end"
        if self.is_broken:
            return f"search.budget.failures = {config.failures}: so many trials failed in a row"
        if config.hours is not None and self.seconds >= 3600 * config.hours:
            return f"search.budget.hours = {config.hours:g} are used up"
        if config.gpu_hours is not None and self.gpu_seconds >= 3600 * config.gpu_hours:
            return f"search.budget.gpu_hours = {config.gpu_hours:g} are used up"
        if config.target is not None and self._best >= first.signed(config.target):
            return f"search.budget.target = {config.target:g} is reached"
        return None

    @property
    def is_broken(self) -> bool:
        """Whether so many trials of this session have failed in a row that the cause is another."""
        return self._config.failures is not None and self._failures >= self._config.failures

    @property
    def seconds(self) -> float:
        """Wall clock of all sessions."""
        return self._clock() - self._began

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
        if self._config.target is None or record.kind == "reference":
            return
        if record.outcome == "finished":
            self._finished.append(record.compact)
            best = best_trial(self._search, self._finished)
            missed = misses(self._search, self._finished)
            if best is not None and not missed[best.trial_id]:
                self._best = (self._search.values(best) or (-math.inf,))[0]
