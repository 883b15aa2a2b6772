"""The Optuna study that optuna-dashboard shows: a view of the journal, also while a search runs.

Its values are the objectives; states, names and numbers are those of the journal. With one
objective and no constraint, `study.best_trial` is the best trial of the search. Accuracies and NLLs
are user attributes. The study is found by the id of the run, and what it lacks is added: nothing is
ever deleted.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search_spaces import SearchSpace
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
from tuning.runs.follower import View
from tuning.runs.history import History
from tuning.runs.journal import cut_torn_line
from tuning.runs.records import (
    METHOD_KEY,
    STEP,
    TrialRecord,
    trial_name,
)

if TYPE_CHECKING:
    from tuning.runs.run_folder import RunFolder

OPTUNA_FILE = "optuna.journal"


def open_storage(run_folder: Path, url: str | None) -> BaseStorage:
    """The storage of the study of a search.

    Args:
        run_folder: folder of the search, whose driver holds the lock.
        url: of a database, `postgresql+psycopg://...`; None for a file in the run folder.

    Raises:
        ConfigError: it cannot be used.
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
    """The study of a search in a storage of Optuna, in which a resume finds it."""

    name = "the Optuna study of the dashboard"
    expected = (Exception,)

    def __init__(self, storage: BaseStorage, space: SearchSpace) -> None:
        self._storage, self._parts = storage, space.parts()
        self._study_id: int | None = None  # found again after an error
        self._ids: dict[str, int] = {}  # of Optuna, by the names of trials
        self._written: dict[str, TrialRecord] = {}
        self._bests: dict[str, float] = {}

    def write(self, history: History, is_over: bool) -> None:
        """Add what the study lacks.

        Raises:
            Exception: of Optuna, SQLAlchemy or a database.
        """
        try:
            if self._study_id is None:
                self._study_id = self._found()
            for record in history.records:
                if self._written.get(record.trial_id) is not record:
                    self._write(self._study_id, record)
                    self._written[record.trial_id] = record
                    self.num_written += 1
        except Exception:
            self._study_id = None
            raise

    def _found(self) -> int:
        """The study, which is created if it is missing."""
        search = self._search
        known = [study.study_name for study in self._storage.get_all_studies()]
        run_id = f"({search.run_id})"
        # A run folder that was renamed keeps its study.
        own = next((name for name in known if name.endswith(run_id)), None)
        modes = [objective.mode for objective in search.objectives]
        study = optuna.create_study(
            study_name=own or f"{search.name} {run_id}",
            storage=self._storage,
            directions=["maximize" if mode == "max" else "minimize" for mode in modes],
            load_if_exists=True,
        )
        study.set_metric_names([objective.metric for objective in search.objectives])
        self._ids = {
            trial.user_attrs[TRIAL_ID]: trial._trial_id
            for trial in study.get_trials(deepcopy=False)
            if TRIAL_ID in trial.user_attrs
        }
        return self._storage.get_study_id_from_name(study.study_name)

    def _write(self, study_id: int, record: TrialRecord) -> None:
        self._bests = self._search.bests([record], self._bests)
        if record.kind != "trial":
            return
        # Trials have the numbers of the journal. A proposal that has not started leaves a gap.
        for number in range(len(self._ids), record.number):
            name = {TRIAL_ID: trial_name(number)}
            waiting = optuna.create_trial(state=TrialState.WAITING, user_attrs=name)
            self._ids[trial_name(number)] = self._storage.create_new_trial(study_id, waiting)
        trial = self._trial(record)
        if record.trial_id not in self._ids:
            self._ids[record.trial_id] = self._storage.create_new_trial(study_id, trial)
        else:
            self._update(self._ids[record.trial_id], trial)

    def _trial(self, record: TrialRecord) -> FrozenTrial:
        search, state, values = self._search, STATES[record.outcome], None
        if state == TrialState.COMPLETE:
            found = [record.last(objective.metric) for objective in search.objectives]
            values = [value for value in found if value is not None]
            if len(values) < len(found):
                state, values = TrialState.FAIL, None
        params, distributions, point = {}, {}, point_of(record)
        for method, space in self._parts.items():
            if record.params.get(METHOD_KEY) == method and is_inside(point, space):
                params, distributions = dict(record.params), space.distributions()
                if method is not None:
                    distributions[METHOD_KEY] = CategoricalDistribution(list(self._parts))
        curve = record.curve if len(search.objectives) == 1 else ()
        metric = search.objectives[0].metric
        metrics = record.metrics.items() if record.is_final else ()
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
            constraints=violations(search, record, self._bests) if values else None,
        )
        if record.started_at is not None:
            trial.datetime_start = datetime.fromtimestamp(record.started_at)
        if record.ended_at is not None and state.is_finished():
            trial.datetime_complete = datetime.fromtimestamp(record.ended_at)
        return trial

    def _update(self, trial_id: int, new: FrozenTrial) -> None:
        storage, old = self._storage, self._storage.get_trial(trial_id)
        if old.state.is_finished():
            return
        for name, value in new.params.items():
            if name not in old.params:
                distribution = new.distributions[name]
                internal = distribution.to_internal_repr(value)
                storage.set_trial_param(trial_id, name, internal, distribution)
        for step, value in new.intermediate_values.items():
            if old.intermediate_values.get(step) != value:
                storage.set_trial_intermediate_value(trial_id, step, value)
        for name, value in new.user_attrs.items():
            if old.user_attrs.get(name) != value:
                storage.set_trial_user_attr(trial_id, name, value)
        for name, value in new.system_attrs.items():
            storage.set_trial_system_attr(trial_id, name, value)
        if new.state != old.state:
            storage.set_trial_state_values(trial_id, new.state, new.values)


def study_of(run: RunFolder) -> optuna.Study:
    """The study of a run, in memory.

    Raises:
        ConfigError: the zero-shot model of the run has not been evaluated yet.
    """
    view = DashboardView(InMemoryStorage(), run.file.search_space())
    with quiet_optuna():
        view.start(run.search)
        view.write(run.history, is_over=True)
        return optuna.load_study(study_name=None, storage=view._storage)
