"""The budgets of a search, any of which ends it.

Everything is counted from the journal, so budgets continue through every resume. GPU-hours are
those that trials have reserved, including partial, failed and repeated trials and references.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tuning.algorithms.early_stopping import Values, dominates
from tuning.config.schema import BudgetConfig
from tuning.runs.callbacks import Callback
from tuning.runs.journal import History
from tuning.runs.records import SearchRecord, TrialRecord


class Budget(Callback):
    """Counts what a search has used, as a callback.

    Args:
        search: its objectives and constraints define an improvement.
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
        self._bests: dict[str | None, dict[str, float]] = {}  # by method
        self._fronts: dict[str | None, list[Values]] = {}
        self._finished: dict[str | None, list[TrialRecord]] = {}
        self._since_improvement = self._failures = 0
        for record in sorted(history.records, key=lambda record: record.ended_at or 0.0):
            self._count(record)

    def allows(self, number: int) -> bool:
        """Whether the trial of that number, counted from 0, may be proposed."""
        return number < self._config.trials and self._stale() is None and self.over() is None

    def over(self) -> str | None:
        """Why the search must end now and stop its running trials; None if it may continue."""
        config, first = self._config, self._search.objectives[0]
        if self.is_broken:
            return f"search.budget.failures = {config.failures}: so many trials failed in a row"
        if config.hours is not None and self.seconds >= 3600 * config.hours:
            return f"search.budget.hours = {config.hours:g} are used up"
        if config.gpu_hours is not None and self.gpu_seconds >= 3600 * config.gpu_hours:
            return f"search.budget.gpu_hours = {config.gpu_hours:g} are used up"
        if config.target is not None:
            bests = (values[0] for front in self._fronts.values() for values in front)
            if max(bests, default=-math.inf) >= first.signed(config.target):
                return f"search.budget.target = {config.target:g} is reached"
        return None

    def reason(self) -> str | None:
        """Why nothing more is proposed, other than the number of trials."""
        return self.over() or self._stale()

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
        if record.kind == "reference" or record.outcome == "stopped":
            return
        improved = record.outcome == "finished" and self._improves(record)
        self._since_improvement = 0 if improved else self._since_improvement + 1

    def _stale(self) -> str | None:
        patience = self._config.patience
        if patience is not None and self._since_improvement >= patience:
            return f"search.budget.patience = {patience}: so many trials brought no improvement"
        return None

    def _improves(self, record: TrialRecord) -> bool:
        """Whether a finished trial changes what is best of its method; updates the best.

        A trial with the best value of a constraint's metric may rule earlier ones out.
        """
        method = self._search.method(record)
        before, front = self._bests.get(method, {}), self._fronts.get(method, [])
        bests = self._bests[method] = self._search.with_bests(before, record)
        finished = self._finished.setdefault(method, [])
        finished.append(record.compact)
        found = front if bests == before else []
        for trial in [record] if bests == before else finished:
            values = self._search.values(trial)
            missed = self._search.violations(trial.last, bests).values()
            if values is None or max(missed, default=-math.inf) > 0:
                continue
            if not any(other == values or dominates(other, values) for other in found):
                found = [v for v in found if not dominates(values, v)] + [values]
        self._fronts[method] = found
        return any(values not in front for values in found)
