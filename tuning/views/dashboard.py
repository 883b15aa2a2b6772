"""The Optuna study that optuna-dashboard shows: a view of the journal, also while a search runs.

Its values are the objectives; trials have the states of the journal, and their names as the user
attribute `trial_id`. With one objective and no constraint, `study.best_trial` is the best trial of
the search. Accuracies and NLLs are user attributes. The study is found by the id of the run, and
what it lacks is added: nothing is ever deleted or changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from trainers.errors import ConfigError, first_line
from trainers.redact import redact
from tuning.algorithms.studies import (
    STATES,
    TRIAL_ID,
    is_inside,
    point_of,
    quiet_optuna,
    violations,
)
from tuning.log.journal import cut_torn_line
from tuning.log.records import METHOD_KEY, STEP, TrialRecord
from tuning.run import Run
from tuning.views.follower import View

OPTUNA_FILE = "optuna.journal"


def open_storage(run_folder: Path, url: str | None) -> BaseStorage:
    """The storage of the study of a search.

    Args:
        run_folder: folder of the search, whose driver holds the lock.
        url: of a database, `postgresql+psycopg://...`; None for a file in the run folder.
    """
    try:
        if url is not None:
            # Connections may be cut between two events of a search, which can be hours apart.
            return RDBStorage(os.path.expandvars(url), engine_kwargs={"pool_pre_ping": True})
        path = run_folder / OPTUNA_FILE
        # A killed driver may leave half a line, and a lock that the run folder's makes obsolete.
        path.with_name(f"{OPTUNA_FILE}.lock").unlink(missing_ok=True)
        if path.is_file():
            cut_torn_line(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:  # of SQLAlchemy and its drivers, of many types; of a damaged file
        hint = "Optuna needs a database of its own" if isinstance(error, RuntimeError) else None
        raise ConfigError(
            redact(f"{type(error).__name__}: {first_line(error)}", url or ""),
            key="search.study_storage",
            value=redact(url or OPTUNA_FILE),
            hint=hint,
        ) from None


class DashboardView(View):
    """The study of a search in a storage of Optuna, in which a resume finds it.

    It has the trials that have ended, in the order in which they did.
    """

    name = "the Optuna study of the dashboard"

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._study: optuna.Study | None = None  # found again after an error
        self._written: set[str] = set()

    def write(self, run: Run) -> None:
        """Add the trials that the study lacks.

        Raises:
            Exception: of Optuna, SQLAlchemy or a database.
        """
        try:
            if self._study is None:
                self._study = self._found(run)
                trials = self._study.get_trials(deepcopy=False)
                self._written = {trial.user_attrs.get(TRIAL_ID, "") for trial in trials}
            bests = run.goal.bests(run.records)
            ended = [r for r in run.records if r.kind == "trial" and r.is_final]
            for record in sorted(ended, key=lambda record: record.ended_at or 0.0):
                if record.trial_id not in self._written:
                    self._study.add_trial(self._trial(run, record, bests))
                    self._written.add(record.trial_id)
        except Exception:
            self._study = None
            raise

    def _found(self, run: Run) -> optuna.Study:
        known = [study.study_name for study in self._storage.get_all_studies()]
        run_id = f"({run.history.run_id})"
        # A run folder that was renamed keeps its study.
        own = next((name for name in known if name.endswith(run_id)), None)
        modes = [objective.mode for objective in run.goal.objectives]
        study = optuna.create_study(
            study_name=own or f"{run.name} {run_id}",
            storage=self._storage,
            directions=["maximize" if mode == "max" else "minimize" for mode in modes],
            load_if_exists=True,
        )
        study.set_metric_names([objective.metric for objective in run.goal.objectives])
        return study

    def _trial(self, run: Run, record: TrialRecord, bests: Mapping[str, float]) -> FrozenTrial:
        state = STATES[record.outcome]
        values = None
        if state == TrialState.COMPLETE:
            found = [record.last(objective.metric) for objective in run.goal.objectives]
            values = [value for value in found if value is not None]
            if len(values) < len(found):
                state = TrialState.FAIL
                values = None
        params = {}
        distributions = {}
        for method, space in run.file.spaces.items():
            if record.params.get(METHOD_KEY) == method and is_inside(point_of(record), space):
                params = dict(record.params)
                distributions = space.distributions()
                if method is not None:
                    distributions[METHOD_KEY] = CategoricalDistribution(list(run.file.spaces))
        curve = record.curve if len(run.goal.objectives) == 1 else ()
        metric = run.goal.objectives[0].metric
        metrics = record.metrics.items()
        attributes = {name: value for name, value in metrics if name.endswith(("acc", "nll"))}
        trial = optuna.create_trial(
            state=state,
            values=values,
            params=params,
            distributions=distributions,
            user_attrs={TRIAL_ID: record.trial_id, **attributes},
            intermediate_values={
                int(report[STEP]): report[metric] for report in curve if metric in report
            },
            constraints=violations(run.goal, record, bests) if values else None,
        )
        if record.started_at is not None:
            trial.datetime_start = datetime.fromtimestamp(record.started_at)
        if record.ended_at is not None:
            trial.datetime_complete = datetime.fromtimestamp(record.ended_at)
        return trial


def study_of(run: Run, records: Sequence[TrialRecord]) -> optuna.Study:
    """The study of a search with the trials that have ended, in memory."""
    storage = InMemoryStorage()
    view = DashboardView(storage)
    with quiet_optuna():
        view.write(replace(run, history=replace(run.history, records=tuple(records))))
        return optuna.load_study(study_name=None, storage=storage)
