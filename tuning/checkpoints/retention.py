"""Retention of checkpoints: which are kept, for how long, and within which budget.

Files of a trial that runs, or may run again, are not touched. When a trial ends, it is decided what
stays of it. A pruned or failed trial loses all its files. A finished one keeps its newest weights
while it is the current choice of a selection rule, one of the `search.checkpoints.keep_top` best by
the objective, or a reference. If all files together exceed `search.checkpoints.disk_gb`, weights
are removed in reverse order of importance, which is the order of `kept_trials`.

The files are compared with these rules at every event. So whatever could not be removed, was left
by a killed driver, or was written again while a trial was being stopped, goes at the next event.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from trainers.data.storage import Store
from trainers.errors import system_words
from tuning.checkpoints.files import TrialFiles, keep_weights, list_trials, remove
from tuning.runs.callbacks import Callback
from tuning.runs.ranking import misses, non_dominated, pareto_front, ranked
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.selection.rules import choices

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 32
"""Trials of earlier sessions that are compared at a time; to compare all at once takes quadratic
time."""


def kept_trials(
    search: SearchRecord, finished: Iterable[TrialRecord], keep_top: int = 0
) -> tuple[TrialRecord, ...]:
    """The finished trials whose weights are kept, the most important first.

    To decide about another trial, these and the other trial are enough, as long as any trial meets
    the constraints: see `_if_bounds_move`.
    """
    finished = list(finished)
    trials = [record for record in finished if record.kind == "trial"]
    objective, *others = choices(search, trials)
    groups = [trials]
    if len(methods := search.methods(trials)) > 1:
        groups += [[r for r in trials if search.method(r) == method] for method in methods]
    order = [
        *objective.trials,
        *(record for record in finished if record.kind == "reference"),
        *ranked(search, trials)[:keep_top],
        # One of them is the best by several objectives, whichever trials are still to come.
        *(pareto_front(search, trials) if len(search.objectives) > 1 else ()),
        *(record for choice in others for record in choice.trials),
        *(record for group in groups for record in _if_bounds_move(search, group)),
    ]
    return tuple({record.trial_id: record for record in order}.values())


def _if_bounds_move(search: SearchRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that the objective may choose once bounds relative to a `best` become tighter.

    First those that no other one beats in objectives and in metrics of such bounds, among the
    trials that meet the constraints; then the trials that set the bounds.
    """
    bests, missed = search.bests(trials), misses(search, trials)
    moving = [constraint for constraint in search.constraints if constraint.anchor == "best"]
    within = [r for r in trials if moving and search.values(r) and not missed[r.trial_id]]
    merits = [
        (*(search.values(r) or ()), *(-c.violation(r.last(c.metric), 0.0) for c in moving))
        for r in within
    ]
    setters = [r for c in moving for r in trials if r.last(c.metric) == bests.get(c.text)]
    return [*(within[index] for index in non_dominated(merits)), *setters]


class CheckpointCallback(Callback):
    """Removes checkpoints that are no longer needed, and keeps all within a budget.

    It does not raise. What cannot be removed is logged once, and tried again at the next event.

    Args:
        disk_bytes: budget of all checkpoints together; None for no limit.
        keep_top: see `kept_trials`.
    """

    def __init__(
        self,
        train: Store,
        disk_bytes: int | None,
        earlier: Iterable[TrialRecord] = (),
        keep_top: int = 0,
    ) -> None:
        self._train, self._disk_bytes, self._keep_top = train, disk_bytes, keep_top
        self._earlier = tuple(record.compact for record in earlier)
        self._search: SearchRecord | None = None
        self._ended: set[str] = set()
        self._kept: tuple[TrialRecord, ...] = ()
        self._given_up: set[str] = set()
        self._logged: set[str] = set()

    def search_started(self, search: SearchRecord) -> None:
        """Decide about the trials of earlier sessions, and remove what these left."""
        self._search = search
        self._decide(self._earlier)
        self._clean()

    def trial_started(self, record: TrialRecord) -> None:
        """The trial's files are not touched until it ends."""
        self._ended.discard(record.trial_id)
        self._clean()

    def trial_reported(self, record: TrialRecord) -> None:
        """A checkpoint was written."""
        self._clean()

    def trial_ended(self, record: TrialRecord) -> None:
        """Decide whether the trial's weights are kept, and which others are no longer needed."""
        if record.trial_id in self._ended:  # in an earlier session: what was decided then stays
            return
        self._decide([record.compact])
        self._clean()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Remove what could not be removed before."""
        self._clean()

    def _decide(self, records: Sequence[TrialRecord]) -> None:
        new = [record for record in records if record.is_final]
        self._ended.update(record.trial_id for record in new)
        finished = [record for record in new if record.outcome == "finished"]
        for begin in range(0, len(finished), _AT_ONCE):
            assert self._search is not None
            candidates = (*self._kept, *finished[begin : begin + _AT_ONCE])
            self._kept = kept_trials(self._search, candidates, self._keep_top)

    def _clean(self) -> None:
        kept = {record.trial_id for record in self._kept} - self._given_up
        for trial in self._trials():
            if trial.trial_id in self._ended:
                self._try(keep_weights if trial.trial_id in kept else remove, trial)
        if self._disk_bytes is not None:
            self._keep_budget(self._disk_bytes)

    def _keep_budget(self, disk_bytes: int) -> None:
        trials = {trial.trial_id: trial for trial in self._trials()}
        total = sum(trial.num_bytes for trial in trials.values())
        for record in reversed(self._kept):
            if total <= disk_bytes:
                return
            if record.trial_id not in trials or record.trial_id not in self._ended:
                continue
            self._given_up.add(record.trial_id)
            if self._try(remove, trials[record.trial_id]):
                total -= trials[record.trial_id].num_bytes
                logger.warning(
                    "the weights of %s were removed: all checkpoints together would exceed "
                    "search.checkpoints.disk_gb = %g",
                    record.trial_id,
                    disk_bytes / 1e9,
                )
        if total > disk_bytes:
            # A trial has two checkpoints while it writes one.
            running = [trial for name, trial in trials.items() if name not in self._ended]
            sizes = [trial.bytes_of(name) for trial in running for name in trial.checkpoints]
            needed = max(total, 2 * max(sizes, default=0) * len(running))
            self._log_once(
                "budget",
                f"the trials that run, or may run again, have checkpoints of {total / 1e9:.3g} GB, "
                f"which are kept although search.checkpoints.disk_gb = {disk_bytes / 1e9:g}: set "
                f"it to at least {math.ceil(needed / 1e8) / 10:g} (two checkpoints for each of "
                f"{len(running)} trials, as one is kept while the next is written), or run fewer "
                "trials at once (search.resources.max_concurrent)",
            )

    def _trials(self) -> list[TrialFiles]:
        try:
            return list_trials(self._train)
        except OSError as error:
            self._log_once("trials", f"checkpoints cannot be listed: {system_words(error)}")
            return []

    def _try(self, action: Callable[[TrialFiles], object], trial: TrialFiles) -> bool:
        try:
            action(trial)
        except OSError as error:
            message = f"{trial.folder.url}: cannot be removed yet: {system_words(error)}"
            self._log_once(trial.trial_id, message)
            return False
        return True

    def _log_once(self, subject: str, message: str) -> None:
        if subject not in self._logged:
            self._logged.add(subject)
            logger.warning(message)
