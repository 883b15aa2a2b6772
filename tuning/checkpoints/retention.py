"""The checkpoints of a search: which stay, for how long, and within which budget.

Each trial has a folder of its own, in which Ray Train keeps its last checkpoint;
`tuning.checkpoints.files` knows where that is and how it is removed. Of a trial that runs, or was
stopped and may run again, nothing is touched. Once the end of a trial is recorded, it never trains
again: a pruned or failed one loses its folder at once, a finished one its optimiser state, and its
weights too as soon as no selection rule can choose it any more, nor is it among the best that were
asked for (`search.checkpoints.keep_top`). Where the budget is exceeded, weights are given up in
this order:

    1. of trials that no rule chooses now, but one could: a bound on the `best` tightens in time
    2. of trials that other selection rules choose, the last rule's and the worse ones first
    3. of the best that were asked for, the worse ones first
    4. of the references
    5. of the trial that the search's own objective chooses

What is there is compared with what should be at every event, so whatever was missed is caught up
with at the next one: a folder that could not be removed, one that Ray Train made again while it
closed the trial, or one that a killed driver left half removed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from trainers.data.storage import Store
from trainers.errors import system_words
from tuning.algorithms.objectives import Constraint
from tuning.checkpoints.files import TrialFiles, keep_weights, list_trials, remove, trial_path
from tuning.checkpoints.repair import repair
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.selection.rules import choices, ranked

logger = logging.getLogger(__name__)

_FINAL: Final = ("finished", "pruned", "failed")
_AT_ONCE: Final = 32
"""Trials of earlier sessions that are compared at a time: comparing all pairs would be slow."""


def kept_trials(
    search: SearchRecord, finished: Iterable[TrialRecord], keep_top: int = 0
) -> tuple[TrialRecord, ...]:
    """The finished trials whose weights are needed, now or perhaps later; the most needed first.

    The `keep_top` best by the objective are, whether or not a rule chooses them. All others can be
    forgotten: what stays of these and a new trial is what stays of all.
    """
    finished = list(finished)
    trials = [record for record in finished if record.kind == "trial"]
    objective, *others = choices(search, trials)
    order = [
        *objective.trials,
        *(record for record in finished if record.kind == "reference"),
        *ranked(search, trials)[:keep_top],
        *(record for choice in others for record in choice.trials),
        *_chosen_later(search, trials, keep_top),
    ]
    return tuple({record.trial_id: record for record in order}.values())


class CheckpointCallback:
    """Removes checkpoints as soon as they are not needed, and keeps all within a budget.

    It never raises at an event; what cannot be removed is named in the log once, and tried again.

    Args:
        train: the folder of all trials.
        disk_bytes: of all checkpoints together; None for no limit.
        earlier: the trials of earlier sessions of the search.
        keep_top: as of `kept_trials`.
    """

    def __init__(
        self,
        train: Store,
        disk_bytes: int | None,
        earlier: Iterable[TrialRecord] = (),
        keep_top: int = 0,
    ) -> None:
        self._train = train
        self._disk_bytes = disk_bytes
        self._keep_top = keep_top
        self._earlier = tuple(record.compact for record in earlier)
        self._search: SearchRecord | None = None
        self._final: set[str] = set()
        self._kept: tuple[TrialRecord, ...] = ()
        self._given_up: set[str] = set()
        self._said: set[str] = set()

    def search_started(self, search: SearchRecord) -> None:
        """Clean up what an earlier session left, and make ready what goes on.

        Raises:
            StorageFailed: it cannot be read.
        """
        self._search = search
        for record in self._earlier:
            if record.outcome == "stopped":
                repair(self._train.at(trial_path(record.trial_id)))
        self._take(self._earlier)
        self._clean()

    def trial_started(self, record: TrialRecord) -> None:
        """From here on, the trial's checkpoints are Ray Train's."""
        self._final.discard(record.trial_id)
        self._clean()

    def trial_reported(self, record: TrialRecord) -> None:
        """A checkpoint was written: look at the budget."""
        self._clean()

    def trial_ended(self, record: TrialRecord) -> None:
        """Decide whether the trial's weights stay, and whether they take the place of others."""
        self._take([record.compact])
        self._clean()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Clean up what could not be removed before."""
        self._clean()

    def _take(self, records: Sequence[TrialRecord]) -> None:
        # What was decided is not decided again: events of earlier sessions are told once more.
        new = [r for r in records if r.outcome in _FINAL and r.trial_id not in self._final]
        self._final.update(record.trial_id for record in new)
        finished = [record for record in new if record.outcome == "finished"]
        while finished:
            some, finished = finished[:_AT_ONCE], finished[_AT_ONCE:]
            assert self._search is not None
            self._kept = kept_trials(self._search, (*self._kept, *some), self._keep_top)

    def _clean(self) -> None:
        kept = {record.trial_id for record in self._kept} - self._given_up
        for trial in self._trials():
            if trial.trial_id in self._final:
                self._try(keep_weights if trial.trial_id in kept else remove, trial)
        if self._disk_bytes is not None:
            self._keep_budget(self._disk_bytes)

    def _keep_budget(self, disk_bytes: int) -> None:
        trials = {trial.trial_id: trial for trial in self._trials()}
        total = sum(trial.num_bytes for trial in trials.values())
        for record in reversed(self._kept):
            if total <= disk_bytes:
                return
            if record.trial_id not in trials or record.trial_id not in self._final:
                continue
            self._given_up.add(record.trial_id)
            if self._try(remove, trials[record.trial_id]):
                total -= trials[record.trial_id].num_bytes
                logger.warning(
                    "the weights of %s are given up: all checkpoints together would take more than "
                    "search.checkpoints.disk_gb = %g",
                    record.trial_id,
                    disk_bytes / 1e9,
                )
        if total > disk_bytes:
            running = [trial for name, trial in trials.items() if name not in self._final]
            needed = math.ceil(max(total, _bytes_to_run(running)) / 1e8) / 10
            self._say_once(
                "budget",
                f"the trials that run, or may run again, hold checkpoints of {total / 1e9:.3g} GB, "
                f"which are kept, though search.checkpoints.disk_gb = {disk_bytes / 1e9:g}: set it "
                f"to at least {needed:g} (two checkpoints for each of {len(running)}, for one is "
                "kept while the next is written), or run fewer trials at once "
                "(search.resources.max_concurrent)",
            )

    def _trials(self) -> list[TrialFiles]:
        try:
            return list_trials(self._train)
        except OSError as error:
            self._say_once("trials", f"checkpoints cannot be listed: {system_words(error)}")
            return []

    def _try(self, action: Callable[[TrialFiles], object], trial: TrialFiles) -> bool:
        try:
            action(trial)
        except OSError as error:
            said = system_words(error)
            self._say_once(trial.trial_id, f"{trial.folder.url}: cannot be removed yet: {said}")
            return False
        return True

    def _say_once(self, subject: str, text: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            logger.warning(text)


def _chosen_later(
    search: SearchRecord, trials: Sequence[TrialRecord], keep_top: int
) -> list[TrialRecord]:
    """The trials that some rule would choose under tighter bounds, and those that set the bounds.

    A bound on the `best` of a metric only tightens. A trial stands best under the tightest bounds
    that it meets, its own values, or under those of now where it misses them already: from there on
    it misses as much more as any other trial, or more. Whoever a rule chooses there, for each
    trial, may be chosen yet, and nobody else; so may whoever is among the best there.
    """
    moving = [c for c in search.constraints if c.anchor == "best"]
    if not moving:
        return []
    bests = search.bests(trials)
    found: dict[str, TrialRecord] = {}
    for record in trials:
        constraints = tuple(
            _tightened(c, record.last(c.metric), bests.get(c.text)) if c.anchor == "best" else c
            for c in search.constraints
        )
        tightened = replace(search, constraints=constraints)
        chosen = [trial for choice in choices(tightened, trials) for trial in choice.trials]
        found |= {t.trial_id: t for t in (*chosen, *ranked(tightened, trials)[:keep_top])}
    later = sorted(found.values(), key=lambda r: (-search.score(r), r.number))
    return later + [r for r in trials for c in moving if r.last(c.metric) == bests.get(c.text)]


def _tightened(constraint: Constraint, value: float | None, best: float | None) -> Constraint:
    """A bound on the best, moved on to the value where that lies within it, and fixed there."""
    bounds = [v for v in (constraint.bound({}, best), value) if v is not None]
    if not bounds:
        return constraint
    tightest = max if constraint.mode == "max" else min
    return replace(constraint, anchor=None, offset=tightest(bounds))


def _bytes_to_run(trials: Sequence[TrialFiles]) -> int:
    """What these trials take at most: each has two checkpoints while it writes one."""
    sizes = (trial.bytes_of(name) for trial in trials for name in trial.checkpoints)
    return 2 * max(sizes, default=0) * len(trials)
