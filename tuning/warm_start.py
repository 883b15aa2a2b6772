"""What a new search learns from earlier ones.

Where trial and data are the same, what they measured is the sampler's from the start. Over other
data their figures do not compare, but good settings carry over: their best points are tried first.
Asked for their measurements all the same, a search shifts each by how much better or worse its own
zero-shot model is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import optuna

from search_spaces import SearchSpace
from trainers.data.fingerprint import data_fingerprint
from trainers.errors import ConfigError
from tuning.config import ELSEWHERE, SearchFile
from tuning.environment import data_seen
from tuning.ranking import pareto_front, ranked
from tuning.records import SearchRecord, TrialRecord
from tuning.runs import LoadedRun, load_run
from tuning.study import add_observation, inside

WARM_START = "warm_start"
"""User attribute of an Optuna trial that an earlier search ran: `<run>/<trial>`."""
_DONE = "warm_started"


def warm_start(
    study: optuna.Study,
    space: SearchSpace,
    file: SearchFile,
    search: SearchRecord,
    strict: bool = True,
) -> list[str]:
    """Give a study what the earlier runs of the configuration know; one line a run for people.

    A study is given it once; after a kill half-way, only what it lacks.

    Args:
        study: of the search.
        space: of the study.
        file: names the runs.
        search: what is optimised.
        strict: refuse a run that does not fit; a search that is under way goes on without it.

    Raises:
        ConfigError: a run cannot be read, or none of its trials fits the space.
    """
    told: list[str] = []
    warm = file.search.warm_start
    if study.user_attrs.get(_DONE):
        return told
    for folder in warm.runs:
        run = load_earlier(folder)
        fitting = [r for r in _ended(run) if inside(r.params, space.distributions())]
        if not fitting and not strict:
            told.append(f"{folder}: no trial inside of this space")
            continue
        if not fitting:
            raise ConfigError(
                f"search.warm_start.runs: {folder}: none of its {len(_ended(run))} ended trials "
                f"has the parameters of this space ({', '.join(space.parameters)}) in its ranges"
            )
        if warm.use == "observations" or (warm.use == "auto" and same_task(run, file)):
            if all(search.values(record) is None for record in fitting):
                metrics = " and ".join(objective.metric for objective in search.objectives)
                raise ConfigError(f"search.warm_start.use: {folder}: no trial there has {metrics}")
            _observe(study, space, search, run, fitting)
            told.append(f"{folder}: {len(fitting)} trials as observations")
        else:
            told.append(f"{folder}: its best {_enqueue(study, search, run, fitting, warm.top)}")
    if warm.runs:
        study.set_user_attr(_DONE, True)
    return told


def same_task(run: LoadedRun, file: SearchFile) -> bool:
    """Whether a trial of that run would measure the same today: equal trial, equal data."""
    then, now = (f.trial.model_dump(exclude={"data": set(ELSEWHERE)}) for f in (run.file, file))
    return then == now and data_seen(run.folder) == data_fingerprint(file.trial.data)


def best_points(
    search: SearchRecord, records: Sequence[TrialRecord], top: int
) -> list[TrialRecord]:
    """The finished trials to try first: the Pareto front's, then the next best by their mean."""
    finished = [record for record in records if record.outcome == "finished"]
    valued = [record for record in ranked(search, finished) if search.values(record)]
    front = {record.trial_id for record in pareto_front(search, finished)}
    return sorted(valued, key=lambda record: record.trial_id not in front)[:top]


def load_earlier(folder: str) -> LoadedRun:
    """An earlier run of the configuration.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return load_run(Path(folder).expanduser())
    except ConfigError as error:
        raise ConfigError(f"search.warm_start.runs: {error}") from None


def _ended(run: LoadedRun) -> list[TrialRecord]:
    return [
        record
        for record in run.history.records
        if record.kind == "trial" and record.outcome in ("finished", "pruned")
    ]


def _enqueue(
    study: optuna.Study,
    search: SearchRecord,
    run: LoadedRun,
    records: Sequence[TrialRecord],
    top: int,
) -> str:
    """Let the best points be tried first; says how many they are."""
    # Over other domains the objective may have another name there.
    measured = any(search.values(record) for record in records)
    points = best_points(search if measured else run.search, records, top)
    if not points:
        raise ConfigError(f"search.warm_start.runs: {run.folder}: no trial of it is finished")
    for record in points:
        study.enqueue_trial(
            dict(record.params),
            user_attrs={WARM_START: f"{run.folder.name}/{record.trial_id}"},
            skip_if_exists=True,
        )
    return f"{len(points)} points are tried first"


def _observe(
    study: optuna.Study,
    space: SearchSpace,
    search: SearchRecord,
    run: LoadedRun,
    records: Sequence[TrialRecord],
) -> None:
    zero_shot = run.search.zero_shot
    shift = {
        name: value - zero_shot[name]
        for name, value in search.zero_shot.items()
        if name in zero_shot
    }
    shifted = [_shifted(record, shift) for record in records]
    bests = search.bests(shifted)
    known = {trial.user_attrs.get(WARM_START) for trial in study.get_trials(deepcopy=False)}
    for record in shifted:
        source = f"{run.folder.name}/{record.trial_id}"
        if source not in known:
            violations, attributes = search.violations(record, bests), {WARM_START: source}
            add_observation(study, space.distributions(), search, record, violations, attributes)


def _shifted(record: TrialRecord, shift: dict[str, float]) -> TrialRecord:
    curve = tuple(
        {name: value + shift.get(name, 0.0) for name, value in report.items()}
        for report in record.curve
    )
    return dataclasses.replace(record, curve=curve)
