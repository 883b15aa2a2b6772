"""Proposes the trials of a search to Ray Tune."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from trainers.config import TrialConfig
from tuning.algorithms.seeds import SeedRace
from tuning.algorithms.studies import Studies
from tuning.runs.callbacks import NotPickled
from tuning.runs.errors import error_text, storage_failure
from tuning.runs.recorder import Recorder
from tuning.runs.records import TrialRecord, trial_name


class TrialProposer(NotPickled, Searcher):
    """Proposes unfinished trials first, then fixed points, then points of the samplers.

    How trials go on reaches the studies through the recorder.

    Args:
        config_of: makes and validates a trial's configuration. An error is a failed trial.
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
        config_of: Callable[[TrialRecord], TrialConfig],
        *,
        fixed: Sequence[TrialRecord],
        studies: Studies,
        may_propose: Callable[[int], bool],
        seeds: SeedRace | None,
        earlier: Sequence[TrialRecord],
    ) -> None:
        first = recorder.search.objectives[0]
        super().__init__(metric=first.metric, mode=first.mode)
        self._studies, self._recorder, self._config_of = studies, recorder, config_of
        self._may_propose, self._seeds = may_propose, seeds
        # A kill may have lost a proposal whose process had not started, but not a later one.
        used = {record.number for record in earlier}
        self._unused = (number for number in itertools.count() if number not in used)
        self._next_number = next(self._unused)
        started = {record.trial_id for record in earlier}
        self._waiting = deque(record for record in earlier if record.outcome == "stopped")
        self._waiting.extend(record for record in fixed if record.trial_id not in started)
        self.is_exhausted = False
        """Whether the last call had nothing more to propose."""

    def suggest(self, trial_id: str) -> Any:
        """The Tune configuration of the next trial; None: ask again; FINISHED: there is no more."""
        while (record := self._next()) is not None:
            try:
                config = self._config_of(record)
            except Exception as error:  # of a combination of parameters, or a plug-in's own check
                if storage_failure(error):
                    raise
                self._recorder.rejected(record, error_text(error))
                continue
            self._recorder.proposed(record)
            return {
                "trial_id": record.trial_id,
                "params": dict(record.params),
                "trial": config.model_dump_json(),  # all that the workers parse
            }
        if self._seeds and self._seeds.waits:
            return None
        self.is_exhausted = True
        return Searcher.FINISHED

    def _next(self) -> TrialRecord | None:
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

    def _do_nothing(self, *_: Any, **__: Any) -> None:
        """The recorder passes the ends of trials on, and a resume reads the journal."""

    on_trial_complete = save = restore = _do_nothing
