"""Proposes the trials of a search."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

from tuning.algorithms.seeds import SeedRace
from tuning.algorithms.studies import Studies
from tuning.runs.recorder import Recorder
from tuning.runs.records import TrialRecord, trial_name


class TrialProposer:
    """Proposes unfinished trials first, then fixed points, then points of the samplers.

    The studies learn of reports from the driver, and of ends from the recorder.

    Args:
        fixed: trials to run in any case, such as references; those in `earlier` have run.
        studies: propose the trials after these.
        may_propose: whether the budget allows the trial of that number from the studies.
        seeds: repeats the leading trials at the end, if it is given.
        earlier: trials of earlier sessions. Unfinished ones are proposed again under their names,
            by which their checkpoints are found.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        fixed: Sequence[TrialRecord],
        studies: Studies,
        may_propose: Callable[[int], bool],
        seeds: SeedRace | None,
        earlier: Sequence[TrialRecord],
    ) -> None:
        self._studies, self._recorder = studies, recorder
        self._may_propose, self._seeds = may_propose, seeds
        # A kill may have lost a proposal whose process had not started, but not a later one.
        used = {record.number for record in earlier}
        self._unused = (number for number in itertools.count() if number not in used)
        self._next_number = next(self._unused)
        started = {record.trial_id for record in earlier}
        self._waiting = deque(record for record in earlier if record.outcome == "stopped")
        self._waiting.extend(record for record in fixed if record.trial_id not in started)

    def next(self) -> TrialRecord | None:
        """The next trial; None if there is none, or none before a trial that trains has ended."""
        if self._waiting:
            return self._waiting.popleft()
        records = list(self._recorder.records.values())
        trainings = self._next_number + sum(record.kind == "repeat" for record in records)
        # Points that the user has enqueued come first.
        is_wanted = any(study.wanted for study in self._studies.studies)
        if self._seeds and self._seeds.begins(trainings, records) and not is_wanted:
            return self._seeds.next(records)
        if not self._may_propose(trainings):
            return None
        record = self._studies.propose(self._next_number, trial_name(self._next_number))
        if record is not None:
            self._next_number = next(self._unused)
        return record
