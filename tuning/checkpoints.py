"""The checkpoints of a run's trials, on a disk or in a bucket: which of them stay, and how long.

    <checkpoint root>/train/train-<trial>/checkpoint_<time>/
        {student.safetensors, predictions.parquet, training_state.pt}

The checkpoint root is the run folder, or a folder of its own in `search.checkpoints.storage`. The
files of one trial are those of `trainers.checkpoints.storage`.

Files of a trial that runs, or may run again, are not touched here; while it trains, `save` in
`trainers/ray_trainer.py` keeps the newest alone. When a trial ends, it is decided what stays of
it. A pruned or failed trial loses all its files. A finished one keeps its newest weights, of which
`confirm` builds the model, while it is one of the `search.checkpoints.keep_top` best and there is
room for it in `search.checkpoints.gigabytes`: the worst go first. What a selection rule chooses,
the first trial and references stay in any case.

The files are compared with these rules once trials have ended. So whatever could not be removed,
was left by a killed driver, or was written again while a trial was being stopped, goes at the next
end.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from trainers.checkpoints import storage
from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.checkpoints.storage import newest_checkpoint
from trainers.data.store import Store, open_store
from trainers.errors import system_words
from tuning.config.schema import CheckpointsConfig
from tuning.log.paths import trial_path
from tuning.log.records import TrialRecord
from tuning.results.goal import Goal
from tuning.results.ranking import first_trial, misses, non_dominated, pareto_front, ranked
from tuning.results.rules import choices, methods_of
from tuning.run import Run

_warn_once = cache(logging.getLogger(__name__).warning)


DISK_BYTES: Final = 50e9
"""Most that weights take of a disk if no limit is given, unless half of what is free is less."""


def kept_trials(
    goal: Goal, finished: Iterable[TrialRecord], keep_top: int | None = 0
) -> dict[str, TrialRecord]:
    """The finished trials whose weights are kept if there is room, by name.

    Args:
        keep_top: number of best trials; None for all. With 0, those that stay in any case.

    To decide about another trial, these and the other trial are enough, as long as any trial meets
    the constraints: see `_if_bounds_move`.
    """
    finished = list(finished)
    trials = [record for record in finished if record.kind == "trial"]
    of_methods = ([r for r in trials if r.method == m] for m in methods_of(trials))
    kept = [
        *(record for record in finished if record.kind == "reference"),
        *ranked(goal, trials)[:keep_top],
        *filter(None, [first_trial(trials)]),
        # One of them is the best by several objectives, whichever trials are still to come.
        *(pareto_front(goal, trials) if len(goal.objectives) > 1 else ()),
        *(r for choice in choices(goal, trials) for r in choice.trials),
        *(r for group in (trials, *of_methods) for r in _if_bounds_move(goal, group)),
    ]
    return {record.trial_id: record for record in kept}


def _if_bounds_move(goal: Goal, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that the objective may choose once bounds relative to a `best` become tighter.

    Those that no other one beats in objectives and in metrics of such bounds, among the trials that
    meet the constraints, and the trials that set the bounds.
    """
    moving = [constraint for constraint in goal.constraints if constraint.anchor == "best"]
    bests, missed = goal.bests(trials), misses(goal, trials) if moving else {}
    merits = [
        (r, (*values, *(-c.violation(r.last(c.metric), 0.0) for c in moving)))
        for r in trials
        if moving and (values := goal.values(r)) and not missed[r.trial_id]
    ]
    unbeaten = [merits[index][0] for index in non_dominated([values for _, values in merits])]
    setters = [r for c in moving for r in trials if r.last(c.metric) == bests.get(c.text)]
    return [*unbeaten, *setters]


class KeptWeights:
    """The checkpoints of trials that have ended, of which those go that are no longer needed.

    It does not raise. What cannot be removed is logged once, and tried again when a trial ends.

    Args:
        limits: number and size of the weights that stay.
        goal: by default that of the run.
        save: called for each trial that has ended, before any of its files go. After an OSError,
            which is logged, they stay for now.
    """

    def __init__(
        self,
        train: Store,
        limits: CheckpointsConfig,
        goal: Goal | None = None,
        save: Callable[[TrialRecord], object] = lambda record: None,
    ) -> None:
        self._train = train
        self._limits = limits
        self._sizes: dict[str, int] = {}  # of the weights of trials, in bytes
        self._goal = goal
        self._save = save
        self._ended: set[str] = set()
        self._kept: set[str] = set()

    def update(self, run: Run) -> None:
        """Decide about trials that have ended since the last call, and remove what is not kept."""
        finals = {record.trial_id: record for record in run.records if self._is_done(record)}
        if finals.keys() == self._ended and run.is_live:
            return
        candidates = [
            record
            for name, record in finals.items()
            if record.outcome == "finished" and (name in self._kept or name not in self._ended)
        ]
        self._kept = self._with_room(self._goal or run.goal, candidates)
        self._ended = {*finals}
        self._clean()

    def _with_room(self, goal: Goal, candidates: Sequence[TrialRecord]) -> set[str]:
        """The trials whose weights stay: those that must, then the best, as long as there is room.

        A disk that others fill leaves less of it.
        """
        kept = {*kept_trials(goal, candidates)}
        best = kept_trials(goal, candidates, self._limits.most_kept)
        held = {name: self._size(name) for name in best}
        room = self._room(sum(held.values())) - sum(held[name] for name in kept)
        for record in ranked(goal, best.values()):
            name = record.trial_id
            if name not in kept:
                room -= held[name]
                if room < 0:
                    break
                kept.add(name)
        return kept

    def _size(self, trial_id: str) -> int:
        """Bytes of a trial's weights."""
        if trial_id not in self._sizes:
            with suppress(OSError):
                files = self._train.list(trial_path(trial_id), recursive=True)
                sizes = [file.size for file in files if file.base_name == WEIGHTS]
                self._sizes[trial_id] = max(sizes, default=0)
        return self._sizes.get(trial_id, 0)

    def _room(self, held: int) -> float:
        """Most bytes of all weights that stay, of which so many are there."""
        if self._limits.gigabytes is not None:
            return 1e9 * self._limits.gigabytes
        if not self._train.is_local:
            return math.inf
        try:
            free = shutil.disk_usage(self._train.local_path()).free
        except OSError:  # no trial has begun
            return DISK_BYTES
        return min(DISK_BYTES, (free + held) / 2)

    def _is_done(self, record: TrialRecord) -> bool:
        if not record.is_final:
            return False
        try:
            self._save(record)
        except OSError as error:
            _warn_once(f"{record.trial_id}: cannot be saved yet: {system_words(error)}")
            return False
        return True

    def _clean(self) -> None:
        try:
            names = [info.base_name for info in self._train.list()]
        except OSError as error:
            _warn_once(f"{self._train.url}: cannot be listed: {system_words(error)}")
            return
        for trial_id in self._ended:
            if (name := trial_path(trial_id)) in names:
                folder = self._train.at(name)
                try:
                    if trial_id in self._kept:
                        keep_weights(folder)
                    else:
                        remove(folder)
                except OSError as error:
                    _warn_once(f"{folder.url}: cannot be removed yet: {system_words(error)}")


def kept_checkpoint(train: Store, trial_id: str) -> Store | None:
    """Newest checkpoint of a trial with whole weights; None if it has none.

    That of an ended trial holds weights only.

    Raises:
        OSError: the storage cannot be read.
    """
    folder = train.at(trial_path(trial_id))
    newest = newest_checkpoint(folder)
    return None if newest is None else folder.at(newest)


def keep_weights(folder: Store) -> None:
    """Remove everything but the newest weights of a trial that has ended.

    Raises:
        OSError: something cannot be read or removed; a second call continues.
    """
    names = storage.checkpoint_names(folder)
    if len(names) == 1 and not folder.exists(f"{names[0]}/{STATE}"):
        return
    newest = newest_checkpoint(folder, names)
    if newest is None:
        remove(folder)
        return
    for name in names:
        if name != newest:
            storage.remove_checkpoint(folder.at(name))
    storage.remove_file(folder, f"{newest}/{STATE}")


def remove(folder: Store) -> None:
    """Remove all files of a trial, oldest weights first.

    Raises:
        OSError: something cannot be removed; a second call continues.
    """
    for name in storage.checkpoint_names(folder):
        storage.remove_file(folder, f"{name}/{WEIGHTS}")
    storage.remove_folder(folder)


def remove_folder(url: str | Path) -> None:
    """Remove a folder with everything in it, as far as possible."""
    with suppress(OSError):
        storage.remove_folder(open_store(url))
