"""The budgets of a search: what is used, what is left, and how a resume gets more.

Any of them ends a search. Everything is counted from the journal, so budgets continue through every
resume. GPU-hours are those that trials have reserved, including partial, failed and repeated trials
and references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from trainers.errors import ConfigError
from tuning.config.schema import BudgetConfig, SearchFile
from tuning.log.callbacks import Callback
from tuning.log.history import History
from tuning.log.orders import recorded_orders
from tuning.log.records import TrialRecord

if TYPE_CHECKING:
    from tuning.run import Run


def num_begun(records: Iterable[TrialRecord]) -> int:
    """Number of trials that have begun, references not included."""
    return sum(record.kind != "reference" for record in records)


def num_ended(records: Iterable[TrialRecord]) -> int:
    """Number of trials that have ended for good, references not included."""
    return sum(record.kind != "reference" and record.is_final for record in records)


def gpu_hours(records: Iterable[TrialRecord], now: float = 0.0) -> float:
    """GPU-hours of all trials, their last attempts up to their ends or to `now`."""
    return sum(record.gpu_seconds(now) for record in records) / 3600


def used_hours(history: History) -> dict[str, float]:
    """Hours of wall clock of all sessions and GPU-hours, under the names of their limits."""
    return {"hours": history.seconds / 3600, "gpu_hours": gpu_hours(history.records)}


def nothing_left(history: History, file: SearchFile) -> ConfigError | None:
    """Why a session with this budget would end before it began; None if there is work."""
    budget = file.search.budget
    for name, used in used_hours(history).items():
        limit = getattr(budget, name)
        if limit is not None and used >= limit:
            hint = f"{_option(name)} +{limit:g} gives as many again"
            return ConfigError("used up", key=f"search.budget.{name}", value=limit, hint=hint)
    begun = num_begun(history.records)
    is_unfinished = any(record.outcome == "stopped" for record in history.records)
    if history.outcome != "finished" or is_unfinished or begun < budget.trials:
        return None
    problem, hint = f"all {begun} trials have ended", "--trials +8 adds eight"
    return ConfigError(problem, key="search.budget.trials", value=budget.trials, hint=hint)


def larger_budget(run: Run, **wanted: float | str | None) -> list[str]:
    """The overrides of a run for budgets by name, such as `30`, or `+8` for eight more.

    They are added to the budget, but to the trials that there are if a user has ended the search.
    """
    given = {name: str(value) for name, value in wanted.items() if value is not None}
    return [f"search.budget.{name}={_total(run, name, value)}" for name, value in given.items()]


def _total(run: Run, name: str, given: str) -> float:
    number = r"\+?[0-9]{1,9}" if name == "trials" else r"\+?[0-9]{1,9}(\.[0-9]{1,9})?"
    if not re.fullmatch(number, given):
        raise ConfigError("write a number, or +8 for eight more", key=_option(name), value=given)
    amount = int(given) if name == "trials" else float(given)
    if not given.startswith("+"):
        return amount
    limit = getattr(run.file.search.budget, name)
    if name != "trials":
        return float(f"{(limit or used_hours(run.history)[name]) + amount:.6g}")
    begun = num_begun(run.records)
    was_ended = any("end" in order for order in recorded_orders(run.history))
    return amount + (begun if was_ended else max(begun, limit))


def more_of(run: Run) -> str:
    """How a resume goes on: as much again of the hours that have ended the search, and eight trials
    if all have ended. `nothing_left` refuses less.
    """
    options = []
    history = run.history
    for name in ("hours", "gpu_hours"):
        limit = getattr(run.file.search.budget, name)
        if limit is not None and history.ended_by.startswith(f"search.budget.{name} "):
            options.append(f"{_option(name)} +{limit:g}")
    is_unfinished = any(record.outcome == "stopped" for record in history.records)
    all_begun = num_begun(history.records) >= run.file.most_trials
    if not options or (all_begun and not is_unfinished):
        options.append("--trials +8")
    return " ".join(options)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
