"""What a new search learns from earlier ones.

Where trial and data are the same, what they measured is the sampler's from the start. Over other
data their figures do not compare, but good settings carry over: their best points are tried first.
Asked for their measurements all the same, a search shifts each by how much better or worse its own
zero-shot model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna

from trainers.data.fingerprint import data_fingerprint
from trainers.errors import ConfigError
from tuning.algorithms.method_studies import Branch, point_of
from tuning.algorithms.study import add_observation, inside
from tuning.config.schema import ELSEWHERE, SearchFile
from tuning.runs.environment import data_seen
from tuning.runs.records import METHOD_KEY, SearchRecord, TrialRecord
from tuning.runs.run_folder import LoadedRun, load_run
from tuning.selection.ranking import pareto_front, ranked

WARM_START = "warm_start"
"""User attribute of an Optuna trial that an earlier search ran: `<run>/<trial>`."""
_DONE = "warm_started"


def warm_start(
    branches: Sequence[Branch], file: SearchFile, search: SearchRecord, strict: bool = True
) -> list[str]:
    """Give studies what the earlier runs of the configuration know; a line for people on each.

    A study is given it once; after a kill half-way, only what it lacks. Each is given the trials of
    its own method, whether the earlier run had several or this one alone.

    Args:
        branches: of the search.
        file: names the runs.
        search: what is optimised.
        strict: refuse a run that does not fit; a search that is under way goes on without it.

    Raises:
        ConfigError: a run cannot be read, or none of its trials fits the space.
    """
    told: list[str] = []
    new = [branch for branch in branches if not branch.study.user_attrs.get(_DONE)]
    runs = file.search.warm_start.runs
    for folder in runs if new else ():
        run = load_earlier(folder)
        fitting = [(b, records) for b in new if (records := _fitting(b, run, file))]
        if fitting:
            told += [f"{folder}: {line}" for line in _learn(fitting, run, file, search)]
        elif strict:
            raise ConfigError(
                f"search.warm_start.runs: {folder}: none of its {len(_ended(run))} ended trials "
                f"has the parameters of {_named(branches)} in its ranges"
            )
        else:
            told.append(f"{folder}: no trial inside of this space")
    for branch in new if runs else ():
        branch.study.set_user_attr(_DONE, True)
    return told


def same_task(run: LoadedRun, record: TrialRecord, file: SearchFile, branch: Branch) -> bool:
    """Whether a trial of that run would measure the same today: equal trial, equal data."""
    method = {key: value for key, value in record.params.items() if key == METHOD_KEY}
    then, now = (
        config.model_dump(exclude={"data": set(ELSEWHERE)})
        for config in (run.file.trial_config(method), file.trial_config(branch.proposal({})))
    )
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


def _named(branches: Sequence[Branch]) -> str:
    if all(branch.method is None for branch in branches):
        return f"this space ({', '.join(branches[0].space.parameters)})"
    return f"one of these methods ({', '.join(str(branch.method) for branch in branches)})"


def _fitting(branch: Branch, run: LoadedRun, file: SearchFile) -> list[TrialRecord]:
    """The ended trials of a run that lie inside of a branch, their methods with them."""
    wanted = branch.method or file.trial.method.name

    def fits(record: TrialRecord) -> bool:
        # Two searches of one method each may learn from another as far as their parameters agree.
        compared = branch.method is not None or METHOD_KEY in record.params
        method = record.params.get(METHOD_KEY, run.file.trial.method.name)
        own = method == wanted or not compared
        return own and inside(point_of(record), branch.space.distributions())

    return [record for record in _ended(run) if fits(record)]


def _learn(
    fitting: Sequence[tuple[Branch, Sequence[TrialRecord]]],
    run: LoadedRun,
    file: SearchFile,
    search: SearchRecord,
) -> list[str]:
    """Tell each branch of its trials in a run; says what they were told.

    Raises:
        ConfigError: there is nothing in the run that any of them could learn from.
    """
    told, problems, use = list[str](), list[ConfigError](), file.search.warm_start.use
    for branch, records in fitting:
        whose = "" if branch.method is None else f"{branch.method}: "
        points = [replace(record, params=point_of(record)) for record in records]
        try:
            if use == "observations" or (
                use == "auto" and same_task(run, records[0], file, branch)
            ):
                _observe(branch, search, run, points)
                told.append(f"{whose}{len(points)} trials as observations")
            else:
                best = _enqueue(branch.study, search, run, points, file.search.warm_start.top)
                told.append(f"{whose}its best {best}")
        except ConfigError as problem:
            problems.append(problem)
    if not told:
        raise problems[0]
    return told


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
    branch: Branch, search: SearchRecord, run: LoadedRun, records: Sequence[TrialRecord]
) -> None:
    if all(search.values(record) is None for record in records):
        metrics = " and ".join(objective.metric for objective in search.objectives)
        raise ConfigError(f"search.warm_start.use: {run.folder}: no trial there has {metrics}")
    zero_shot = run.search.zero_shot
    shift = {
        name: value - zero_shot[name]
        for name, value in search.zero_shot.items()
        if name in zero_shot
    }
    shifted = [_shifted(record, shift) for record in records]
    bests = search.bests(shifted)
    study, distributions = branch.study, branch.space.distributions()
    known = {trial.user_attrs.get(WARM_START) for trial in study.get_trials(deepcopy=False)}
    for record in shifted:
        source = f"{run.folder.name}/{record.trial_id}"
        if source not in known:
            violations, attributes = search.violations(record, bests), {WARM_START: source}
            add_observation(study, distributions, search, record, violations, attributes)


def _shifted(record: TrialRecord, shift: dict[str, float]) -> TrialRecord:
    curve = tuple(
        {name: value + shift.get(name, 0.0) for name, value in report.items()}
        for report in record.curve
    )
    return replace(record, curve=curve)
