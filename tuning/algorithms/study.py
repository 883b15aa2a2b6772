"""The Optuna study of a search: where it is kept, and what it knows at the start.

The journal of the run folder is what really happened; the study is the sampler's image of it.
`synchronise` brings the image up to date after any interruption, and makes it anew where it is
missing, as after a move of the run folder or a change of the space.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError

from search_spaces import SearchSpace
from trainers.errors import ConfigError, storage_failures
from trainers.redact import redact
from tuning.algorithms.samplers import create_sampler
from tuning.config.schema import SamplerConfig
from tuning.runs.append_log import cut_torn_line
from tuning.runs.records import STEP, Outcome, SearchRecord, TrialRecord
from tuning.security.databases import check_driver, expand

TRIAL_ID = "trial_id"
"""User attribute of an Optuna trial: the name of ours."""
_ATTEMPTS = 8
"""At opening a database."""
_WORST = 1e9
"""For a constraint on a metric that the trial does not have; Optuna takes no infinity."""
STATES = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "stopped": TrialState.RUNNING,
    "running": TrialState.RUNNING,
}


def open_study(
    search: SearchRecord,
    sampler: SamplerConfig,
    space: SearchSpace,
    storage: BaseStorage | str | None = None,
    method: str | None = None,
) -> optuna.Study:
    """The study of this search alone; made if it is not there.

    Args:
        search: whose study it is; objectives give the directions.
        sampler: who proposes.
        space: what is searched; another space is another study, for in Optuna a parameter cannot
            change what it is.
        storage: where it is kept; for None and a URL, see `open_storage`.
        method: whose study it is, where a search has one for each.

    Raises:
        ConfigError: the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # By folder too: two searches of one name in one database must not share a study.
    identity = f"{search.run_folder.resolve()}\n{space.canonical()}"
    name = search.name if method is None else f"{search.name}-{method}"
    if not isinstance(storage, BaseStorage):
        storage = open_storage(search.run_folder, storage)
    study = optuna.create_study(
        study_name=f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}",
        storage=storage,
        directions=["maximize" if o.mode == "max" else "minimize" for o in search.objectives],
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if not study.metric_names:
            study.set_metric_names([o.metric for o in search.objectives])
        study.sampler = create_sampler(sampler, len(study.get_trials(deepcopy=False)))
    return study


def ended_in(study: optuna.Study, records: Sequence[TrialRecord]) -> dict[str, Outcome]:
    """The outcomes of those trials that the study knows to have ended, by our names.

    A name alone is not enough: extending to another space and back may have given it twice.
    """
    outcomes: dict[TrialState, Outcome] = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    params = {record.trial_id: dict(record.params) for record in records}
    return {
        name: outcomes[trial.state]
        for trial in study.get_trials(deepcopy=False)
        if (name := trial.user_attrs.get(TRIAL_ID)) in params
        if trial.params == params[name] and trial.state in outcomes
    }


def synchronise(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    search: SearchRecord,
    records: Sequence[TrialRecord],
    elsewhere: Collection[str] = (),
) -> None:
    """Tell the study what the journal knows and it does not.

    Trials that ended while the driver was killed are told; those that it lacks are added, unless
    they lie outside of the space.

    Args:
        study: of the search.
        space: of the study.
        search: what is optimised.
        records: the trials that are its to know.
        elsewhere: names of trials that are not.
    """
    bests = search.bests(records)
    known = {t.user_attrs.get(TRIAL_ID): t for t in study.get_trials(deepcopy=False)}
    for name in known.keys() & elsewhere:
        _give_up(study, known[name])
    for record in records:
        state = STATES[record.outcome]
        if record.kind != "trial":
            continue
        trial = known.get(record.trial_id)
        if trial is not None and trial.params != dict(record.params):
            _give_up(study, trial)
            trial = None
        if trial is None:
            if inside(record.params, space):
                violations = search.violations(record, bests)
                known_as = {TRIAL_ID: record.trial_id}
                add_observation(study, space, search, record, violations, known_as)
        elif state != TrialState.RUNNING and not trial.state.is_finished():
            tell(optuna.Trial(study, trial._trial_id), study, search, record, bests)


def _give_up(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Close a trial that was named here and never started; the name went to one elsewhere."""
    if not trial.state.is_finished():
        study.tell(optuna.Trial(study, trial._trial_id), state=TrialState.FAIL)


def add_observation(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    search: SearchRecord,
    record: TrialRecord,
    violations: Mapping[str, float],
    attributes: Mapping[str, str],
) -> None:
    """Give the study a trial that it did not propose, with user attributes."""
    values = _raw_values(search, record)
    state = STATES[record.outcome]
    if state in (TrialState.COMPLETE, TrialState.PRUNED) and values is None:
        state = TrialState.FAIL
    metric = search.objectives[0].metric
    intermediate = {
        int(point[STEP]): float(point[metric])
        for point in record.curve
        if len(search.objectives) == 1 and math.isfinite(point.get(metric, math.nan))
    }
    finite = {text: min(missed, _WORST) for text, missed in violations.items()}
    trial = optuna.create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=dict(record.params),
        distributions=dict(space),
        user_attrs=dict(attributes),
        intermediate_values=intermediate,
        constraints=finite if state == TrialState.COMPLETE else None,
    )
    study.add_trial(trial)


def tell(
    trial: optuna.Trial,
    study: optuna.Study,
    search: SearchRecord,
    record: TrialRecord,
    bests: Mapping[str, float],
) -> None:
    """Tell the outcome of a trial: complete with values and constraints, pruned, or failed."""
    state, values = STATES[record.outcome], _raw_values(search, record)
    if values is None and state != TrialState.FAIL:
        state = TrialState.FAIL  # it ended with no number: a loss that diverged
    if len(search.objectives) == 1 and values is not None:
        report(trial, study, values[0], record.step)  # Tune may bring the last one with the end
    if state == TrialState.COMPLETE:
        for text, violation in search.violations(record, bests).items():
            trial.set_constraint(text, min(violation, _WORST))
        study.tell(trial, values)
    else:
        study.tell(trial, state=state)


def report(trial: optuna.Trial, study: optuna.Study, value: float, step: int) -> None:
    """Tell an intermediate value, unless it is known; Optuna has them for one objective only."""
    if step not in study._storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(value, step)


def inside(params: Mapping[str, object], space: Mapping[str, BaseDistribution]) -> bool:
    """Whether the parameters are those of the space, each within its range."""
    return params.keys() == space.keys() and all(
        distribution._contains(distribution.to_internal_repr(params[key]))
        for key, distribution in space.items()
    )


def _raw_values(search: SearchRecord, record: TrialRecord) -> list[float] | None:
    values = [record.last(objective.metric) for objective in search.objectives]
    return [v for v in values if v is not None] if None not in values else None


def open_storage(run_folder: Path, url: str | None) -> BaseStorage:
    """Where studies are kept.

    Args:
        run_folder: of the search.
        url: of a database, `postgresql+psycopg://...`; None is a journal file in the run folder,
            appended to and never rewritten, so that a crash cannot corrupt what stands in it.

    Raises:
        ConfigError: the database cannot be used.
    """
    if url is None:
        path = run_folder / "optuna.journal"
        if path.is_file():
            cut_torn_line(path)
        # Left behind by a driver that was killed while it wrote; the run folder's own lock says
        # that no other one lives.
        (run_folder / "optuna.journal.lock").unlink(missing_ok=True)
        return JournalStorage(_JournalFile(str(path)))
    check_driver("search.study_storage", url)
    try:
        return _open_database(expand(url))
    except Exception as error:  # SQLAlchemy's and its drivers'
        own = "; Optuna needs a database of its own" if isinstance(error, RuntimeError) else ""
        reason = redact(_first_line(error), url)
        raise ConfigError(f"search.study_storage = {redact(url)!r}: {reason}{own}") from None


def _open_database(url: str) -> BaseStorage:
    """Where several searches find it empty, one makes the tables and the others ask again."""
    for attempt in itertools.count(1):
        try:
            # Between two events of a search hours may pass, in which a connection is cut.
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):  # what was not there a moment ago, now is
            if attempt == _ATTEMPTS:
                raise
        time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("unreachable")


class _JournalFile(JournalFileBackend):
    """Optuna's, but what could not be written whole leaves nothing, and is told as what it is."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        path = Path(self._file_path)
        size = path.stat().st_size
        with storage_failures(path, "cannot be written"):
            try:
                super().append_logs(logs)
            except OSError:
                with suppress(OSError):
                    os.truncate(path, size)  # nobody else writes: the run folder is locked
                raise


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
