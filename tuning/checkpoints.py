"""The checkpoints of a search on disk: which stay, for how long, and within which budget.

Each trial has a folder of its own below the run folder, in which Ray Train keeps its last
checkpoint. Of a trial that runs, or was stopped and may run again, nothing is touched. Once the end
of a trial is recorded, it never trains again: a pruned or failed one loses its folder at once, a
finished one its optimiser state, and its weights too as soon as no selection rule can choose it any
more, nor is it among the best that were asked for (`search.checkpoints.keep_top`). Where the budget
is exceeded, weights are given up in this order:

    1. of trials that no rule chooses now, but one could: a bound on the `best` tightens in time
    2. of trials that other selection rules choose, the last rule's and the worse ones first
    3. of the best that were asked for, the worse ones first
    4. of the references
    5. of the trial that the search's own objective chooses

What is on disk is compared with what should be at every event, so whatever was missed is caught up
with at the next one: a folder that could not be removed, one that Ray Train made again while it
closed the trial, or one that a killed driver left half removed, under a name of its own.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainers.checkpoint import STATE, saved_step
from tuning.objective import Constraint
from tuning.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.selection import choices, ranked

logger = logging.getLogger(__name__)

TRAIN_FOLDER: Final = "train"
"""Below a run folder: where Ray Train keeps the runs of all trials."""
_TRIAL: Final = "train-"
_DELETING: Final = ".deleting-"
_FINAL: Final = ("finished", "pruned", "failed")
_AT_ONCE: Final = 32
"""Trials of earlier sessions that are compared at a time: comparing all pairs would be slow."""


def trial_folder(run_folder: Path, trial_id: str) -> Path:
    """Where Ray Train keeps the checkpoints of a trial."""
    return run_folder / TRAIN_FOLDER / f"{_TRIAL}{trial_id}"


def kept_checkpoint(run_folder: Path, trial_id: str) -> Path | None:
    """The newest checkpoint of a trial whose weights are whole; None where there is none.

    Of a trial that has ended it holds the weights alone.
    """
    return _newest_checkpoint(trial_folder(run_folder, trial_id))


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


class CheckpointListener:
    """Removes checkpoints as soon as they are not needed, and keeps all within a budget.

    It never raises; what cannot be removed is named in the log once, and tried again.

    Args:
        run_folder: of the search.
        disk_bytes: of all checkpoints together; None for no limit.
        earlier: the trials of earlier sessions of the search.
        keep_top: as of `kept_trials`.
    """

    def __init__(
        self,
        run_folder: Path,
        disk_bytes: int | None,
        earlier: Iterable[TrialRecord] = (),
        keep_top: int = 0,
    ) -> None:
        self._run_folder = run_folder
        self._disk_bytes = disk_bytes
        self._keep_top = keep_top
        self._earlier = tuple(record.compact for record in earlier)
        self._search: SearchRecord | None = None
        self._final: set[str] = set()
        self._kept: tuple[TrialRecord, ...] = ()
        self._given_up: set[str] = set()
        self._said: set[str] = set()

    def search_started(self, search: SearchRecord) -> None:
        """Clean up what an earlier session left."""
        self._search = search
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
        for folder in self._folders():
            trial_id = folder.name.removeprefix(_TRIAL)
            if folder.name.startswith(_DELETING):
                self._try(shutil.rmtree, folder)
            elif trial_id in self._final:
                self._try(_keep_weights if trial_id in kept else _remove, folder)
        if self._disk_bytes is not None:
            self._keep_budget(self._disk_bytes)

    def _keep_budget(self, disk_bytes: int) -> None:
        sizes = {folder: _num_bytes(folder) for folder in self._folders()}
        total = sum(sizes.values())
        for record in reversed(self._kept):
            folder = trial_folder(self._run_folder, record.trial_id)
            if total <= disk_bytes:
                return
            if folder not in sizes or record.trial_id not in self._final:
                continue
            self._given_up.add(record.trial_id)
            if self._try(_remove, folder):
                total -= sizes[folder]
                logger.warning(
                    "the weights of %s are given up: all checkpoints together would take more than "
                    "search.checkpoints.disk_gb = %g",
                    record.trial_id,
                    disk_bytes / 1e9,
                )
        if total > disk_bytes:
            running = [f for f in sizes if f.name.removeprefix(_TRIAL) not in self._final]
            needed = math.ceil(max(total, _bytes_to_run(running)) / 1e8) / 10
            self._say_once(
                "budget",
                f"the trials that run, or may run again, hold checkpoints of {total / 1e9:.3g} GB, "
                f"which are kept, though search.checkpoints.disk_gb = {disk_bytes / 1e9:g}: set it "
                f"to at least {needed:g} (two checkpoints for each of {len(running)}, for one is "
                "kept while the next is written), or run fewer trials at once "
                "(search.resources.max_concurrent)",
            )

    def _folders(self) -> list[Path]:
        try:
            return sorted((self._run_folder / TRAIN_FOLDER).iterdir())
        except FileNotFoundError:  # no trial has started
            return []
        except OSError as error:
            self._say_once("folders", f"checkpoints cannot be listed: {error}")
            return []

    def _try(self, action: Callable[[Path], object], folder: Path) -> bool:
        try:
            action(folder)
        except OSError as error:
            self._say_once(folder.name, f"{folder}: cannot be removed yet: {error}")
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


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint_*") if path.is_dir()]  # and no snapshot


def _newest_checkpoint(folder: Path) -> Path | None:
    """By the steps of the weights; where Ray Train's names tie, which are times, by these."""
    whole = [
        (step, path.name, path)
        for path in _checkpoints(folder)
        if (step := saved_step(path)) is not None
    ]
    return max(whole)[-1] if whole else None


def _keep_weights(folder: Path) -> None:
    """Remove all but the newest weights of a trial that is not going to train again."""
    checkpoints = _checkpoints(folder)
    if len(checkpoints) < 2 and not any((path / STATE).exists() for path in checkpoints):
        return
    newest = _newest_checkpoint(folder)
    if newest is None:
        return
    for path in checkpoints:
        if path != newest:
            shutil.rmtree(path)
    (newest / STATE).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove a folder so that a kill on the way leaves nothing that looks like a checkpoint."""
    # A name of its own: an earlier attempt at this folder may have failed half way.
    doomed = folder.with_name(f"{_DELETING}{folder.name}-{secrets.token_hex(4)}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _num_bytes(folder: Path) -> int:
    """Of all files below; those that Ray Train takes away meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except OSError:
                continue
    return total


def _bytes_to_run(folders: Sequence[Path]) -> int:
    """What these trials take at most: each has two checkpoints while it writes one."""
    largest = max((_num_bytes(p) for f in folders for p in _checkpoints(f)), default=0)
    return 2 * largest * len(folders)
