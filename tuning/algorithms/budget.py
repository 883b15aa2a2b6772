"""The budgets of a search, any of which ends it.

Everything is counted from the journal, so budgets continue through every resume. GPU-hours are
those that trials have reserved, including partial, failed and repeated trials and references.
"""

from __future__ import annotations

from collections.abc import Callable

from tuning.config.schema import BudgetConfig
from tuning.runs.callbacks import Callback
from tuning.runs.history import History
from tuning.runs.records import TrialRecord


class Budget(Callback):
    """Counts what a search has used, by the events of its trials and the clock of its journal."""

    def __init__(self, config: BudgetConfig, history: History, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        self._began = clock() - history.seconds
        self._ended_gpu_seconds = {r.trial_id: r.gpu_seconds(clock()) for r in history.records}
        self._running: dict[str, TrialRecord] = {}
        self._failures = 0
        self.is_ended = False
        """Whether the user has ended the search by `lipsum-tune control`."""

    def allows(self, number: int) -> bool:
        """Whether the trial of that number, counted from 0, may be proposed."""
        return number < self._config.trials and self.over() is None

    def over(self) -> str | None:
        """Why the search must end now, before all its trials; None if it may continue."""
        config = self._config
        if self.is_ended:
            return "`lipsum-tune control --end`"
        if self.is_broken:
            return f"{config.failures} trials failed in a row (search.budget.failures)"
        wall_s = self._clock() - self._began
        for name, used_s in (("hours", wall_s), ("gpu_hours", self.gpu_seconds)):
            limit = getattr(config, name)
            if limit is not None and used_s >= 3600 * limit:
                return f"search.budget.{name} = {limit:g} are used up"
        return None

    @property
    def is_broken(self) -> bool:
        """Whether so many trials of this session have failed in a row that the cause is another."""
        return self._config.failures is not None and self._failures >= self._config.failures

    @property
    def gpu_seconds(self) -> float:
        """GPUs times seconds of all attempts of all trials, up to now."""
        now = self._clock()
        running = (record.gpu_seconds(now) for record in self._running.values())
        return sum(self._ended_gpu_seconds.values()) + sum(running)

    def trial_started(self, record: TrialRecord) -> None:
        """Count its GPUs from now on. Its earlier attempts are part of the running record."""
        self._ended_gpu_seconds.pop(record.trial_id, None)
        self._running[record.trial_id] = record

    def trial_ended(self, record: TrialRecord) -> None:
        """Count the end of a trial of this session. Those of earlier sessions are counted."""
        if self._running.pop(record.trial_id, None) is not None:
            self._ended_gpu_seconds[record.trial_id] = record.gpu_seconds(self._clock())
            self._failures = self._failures + 1 if record.outcome == "failed" else 0
