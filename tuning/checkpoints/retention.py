"""Retention of checkpoints: which are kept, and for how long.

Files of a trial that runs, or may run again, are not touched. When a trial ends, it is decided what
stays of it. A pruned or failed trial loses all its files. A finished one keeps its newest weights
while it is the current choice of a selection rule, one of the `search.checkpoints.keep_top` best by
the objective, or a reference. So the disk holds a few weights, however many trials there are.

The files are compared with these rules whenever a trial ends. So whatever could not be removed, was
left by a killed driver, or was written again while a trial was being stopped, goes at the next end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from trainers.data.storage import Store
from trainers.errors import system_words
from tuning.checkpoints.files import keep_weights, list_trials, remove
from tuning.runs.callbacks import Callback
from tuning.runs.ranking import misses, non_dominated, pareto_front, ranked
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.selection.rules import choices

logger = logging.getLogger(__name__)


def kept_trials(
    search: SearchRecord, finished: Iterable[TrialRecord], keep_top: int = 0
) -> dict[str, TrialRecord]:
    """The finished trials whose weights are kept, by name.

    To decide about another trial, these and the other trial are enough, as long as any trial meets
    the constraints: see `_if_bounds_move`.
    """
    finished = list(finished)
    trials = [record for record in finished if record.kind == "trial"]
    of_methods = ([r for r in trials if search.method(r) == m] for m in search.methods(trials))
    kept = [
        *(record for record in finished if record.kind == "reference"),
        *ranked(search, trials)[:keep_top],
        # One of them is the best by several objectives, whichever trials are still to come.
        *(pareto_front(search, trials) if len(search.objectives) > 1 else ()),
        *(r for choice in choices(search, trials) for r in choice.trials),
        *(r for group in (trials, *of_methods) for r in _if_bounds_move(search, group)),
    ]
    return {record.trial_id: record for record in kept}


def _if_bounds_move(search: SearchRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that the objective may choose once bounds relative to a `best` become tighter.

    Those that no other one beats in objectives and in metrics of such bounds, among the trials that
    meet the constraints, and the trials that set the bounds.
    """
    moving = [constraint for constraint in search.constraints if constraint.anchor == "best"]
    bests, missed = search.bests(trials), misses(search, trials) if moving else {}
    merits = [
        (r, (*values, *(-c.violation(r.last(c.metric), 0.0) for c in moving)))
        for r in trials
        if moving and (values := search.values(r)) and not missed[r.trial_id]
    ]
    unbeaten = [merits[index][0] for index in non_dominated([values for _, values in merits])]
    setters = [r for c in moving for r in trials if r.last(c.metric) == bests.get(c.text)]
    return [*unbeaten, *setters]


class CheckpointCallback(Callback):
    """Removes checkpoints that are no longer needed.

    It does not raise. What cannot be removed is logged once, and tried again at the next event.

    Args:
        keep_top: see `kept_trials`.
    """

    def __init__(
        self, train: Store, earlier: Iterable[TrialRecord] = (), keep_top: int = 0
    ) -> None:
        self._train, self._keep_top = train, keep_top
        self._earlier = tuple(record.compact for record in earlier)
        self._ended: set[str] = set()
        self._kept: dict[str, TrialRecord] = {}
        self._logged: set[str] = set()

    def search_started(self, search: SearchRecord) -> None:
        """Decide about the trials of earlier sessions, and remove what these left."""
        self._search = search
        for record in self._earlier:
            self._decide(record)
        self._clean()

    def trial_ended(self, record: TrialRecord) -> None:
        """Decide whether the trial's weights are kept, and which others are no longer needed."""
        if record.trial_id not in self._ended:  # otherwise in an earlier session
            self._decide(record.compact)
            self._clean()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Remove what could not be removed before."""
        self._clean()

    def _decide(self, record: TrialRecord) -> None:
        if record.is_final:
            self._ended.add(record.trial_id)
        if record.outcome == "finished":
            candidates = (*self._kept.values(), record)
            self._kept = kept_trials(self._search, candidates, self._keep_top)

    def _clean(self) -> None:
        try:
            trials = list_trials(self._train)
        except OSError as error:
            self._log_once("trials", f"checkpoints cannot be listed: {system_words(error)}")
            return
        for trial in trials:
            if trial.trial_id in self._ended:
                try:
                    (keep_weights if trial.trial_id in self._kept else remove)(trial)
                except OSError as error:
                    message = f"{trial.folder.url}: cannot be removed yet: {system_words(error)}"
                    self._log_once(trial.trial_id, message)

    def _log_once(self, subject: str, message: str) -> None:
        if subject not in self._logged:
            self._logged.add(subject)
            logger.warning(message)
