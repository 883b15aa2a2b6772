"""What a new search learns from earlier ones.

If trial and data are the same, the sampler gets the earlier results as observations. Results on
other data, or without a metric of the sampler or a constraint, do not compare, but good parameters
carry over: the best points are tried first. With `search.warm_start.use = observations`, results on
other data are used as well, each shifted by the difference between the zero-shot models. Either
replaces the points of `search.prior`, unless they are so few that the sampler would go on at
random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from trainers.data.fingerprint import data_fingerprint
from trainers.errors import ConfigError
from tuning.algorithms.studies import MethodStudy, is_inside, point_of
from tuning.config.schema import ELSEWHERE, SearchFile
from tuning.runs.environment import seen_at_start
from tuning.runs.ranking import pareto_front, ranked
from tuning.runs.records import METHOD_KEY, SearchRecord, TrialRecord
from tuning.runs.run_folder import LoadedRun, load_run

WARM_START = "warm_start"
"""User attribute of an Optuna trial that an earlier search ran: `<run>/<trial>`."""


Earlier: TypeAlias = Mapping[str, LoadedRun | ConfigError]
"""Earlier runs by their folders in the configuration; the error, if one cannot be read."""


def load_earlier(file: SearchFile) -> Earlier:
    """The runs of `search.warm_start.runs`."""

    def load(folder: str) -> LoadedRun | ConfigError:
        try:
            return load_run(Path(folder).expanduser())
        except ConfigError as error:
            return ConfigError(str(error), key="search.warm_start.runs")

    return {folder: load(folder) for folder in file.search.warm_start.runs}


def warm_start(
    studies: Sequence[MethodStudy],
    file: SearchFile,
    search: SearchRecord,
    earlier: Earlier,
    strict: bool = True,
) -> list[str]:
    """Give earlier runs to studies; returns a line about each run.

    Each study gets the trials of its own method, whether the earlier run compared methods or not.
    A resumed search does the same again, because its studies are new.

    Args:
        strict: raise if a run does not fit. Otherwise the search continues without it.

    Raises:
        ConfigError: a run cannot be read, or none of its trials is inside of the space.
    """
    lines: list[str] = []
    for folder, run in earlier.items():
        try:
            if isinstance(run, ConfigError):
                raise run
            fitting = [(s, records) for s in studies if (records := _fitting(s, run, file))]
            if not fitting:
                names = ", ".join(s.method or ", ".join(s.space.parameters) for s in studies)
                one = "one of these methods" if studies[0].method else "this space"
                raise ConfigError(
                    f"none of its {len(_ended(run))} ended trials has the parameters of "
                    f"{one} ({names}) in its ranges",
                    key="search.warm_start.runs",
                    source=folder,
                )
            lines += [f"{folder}: {line}" for line in _learn(fitting, run, file, search)]
        except ConfigError as error:
            if strict:
                raise
            lines.append(f"{folder}: not used any more: {error.problem}")
            for study in studies:  # the run may have replaced the prior when the trials began
                study.is_warm |= study.num_trials > 0
    return lines


def warm_start_uses_ood(file: SearchFile, earlier: Earlier) -> bool:
    """Whether an earlier run used OOD validation data.

    The validation data of its ID domain count, too, if that domain is OOD in this search. A run
    that cannot be read does not count; `warm_start` reports it.
    """
    searches = [run.search for run in earlier.values() if not isinstance(run, ConfigError)]
    domains = file.trial.data.ood_domains
    return any(search.sees_ood or search.id_domain in domains for search in searches)


def same_task(run: LoadedRun, record: TrialRecord, file: SearchFile, study: MethodStudy) -> bool:
    """Whether a trial of that run would measure the same in this search: equal trial and data."""
    method = {key: value for key, value in record.params.items() if key == METHOD_KEY}
    then, now = (
        config.model_dump(exclude={"data": set(ELSEWHERE)})
        for config in (run.file.trial_config(method), file.trial_config(study.params({})))
    )
    return then == now and seen_at_start(run.folder) == data_fingerprint(file.trial.data)


def best_points(
    search: SearchRecord, records: Sequence[TrialRecord], top: int
) -> list[TrialRecord]:
    """The finished trials to try first: the Pareto front, then the next best by score."""
    finished = [record for record in records if record.outcome == "finished"]
    valued = [record for record in ranked(search, finished) if search.values(record)]
    front = {record.trial_id for record in pareto_front(search, finished)}
    return sorted(valued, key=lambda record: record.trial_id not in front)[:top]


def _fitting(study: MethodStudy, run: LoadedRun, file: SearchFile) -> list[TrialRecord]:
    """The ended trials of a run inside of a study's space."""
    wanted = study.method or file.trial.method.name

    def fits(record: TrialRecord) -> bool:
        # Two searches of a single method learn from each other if their parameters are the same.
        compared = study.method is not None or METHOD_KEY in record.params
        method = record.params.get(METHOD_KEY, run.file.trial.method.name)
        own = method == wanted or not compared
        return own and is_inside(point_of(record), study.space)

    return [record for record in _ended(run) if fits(record)]


def _learn(
    fitting: Sequence[tuple[MethodStudy, Sequence[TrialRecord]]],
    run: LoadedRun,
    file: SearchFile,
    search: SearchRecord,
) -> list[str]:
    """Give each study its trials of a run; returns a line about each study.

    Raises:
        ConfigError: no study can learn from the run.
    """
    lines, problems, use = list[str](), list[ConfigError](), file.search.warm_start.use
    saw_ood = " (chosen with OOD validation data)" if run.search.sees_ood else ""
    wanted = {objective.metric for objective in search.sampler_objectives}
    wanted |= {constraint.metric for constraint in search.constraints}
    for study, records in fitting:
        prefix = "" if study.method is None else f"{study.method}: "
        points = [replace(record, params=point_of(record)) for record in records]
        # Runs with other domains lack metrics. The sampler would take such trials for failures.
        observed = [record for record in points if wanted <= record.metrics.keys()]
        try:
            if use == "observations" or (
                use == "auto" and observed and same_task(run, records[0], file, study)
            ):
                if not observed:
                    raise ConfigError(
                        f"none of its trials has {' and '.join(sorted(wanted))}",
                        key="search.warm_start.use",
                        source=run.folder,
                    )
                _observe(study, search, run, observed)
                told = [objective.metric for objective in search.sampler_objectives]
                study.num_observed += sum(
                    record.outcome == "finished" and None not in map(record.last, told)
                    for record in observed
                )
                lines.append(f"{prefix}{len(observed)} trials as observations")
            else:
                number = _enqueue(study, search, run, points, file.search.warm_start.top)
                study.num_first += number
                lines.append(f"{prefix}its best {number} points are tried first{saw_ood}")
            enough = study.startup_trials
            if study.num_first:  # no more were asked for
                enough = min(enough, file.search.warm_start.top)
            study.is_warm |= study.num_observed + study.num_first >= enough
        except ConfigError as problem:
            problems.append(problem)
    if not lines:
        raise problems[0]
    return lines


def _ended(run: LoadedRun) -> list[TrialRecord]:
    return [
        record
        for record in run.history.records
        if record.kind == "trial" and record.outcome in ("finished", "pruned")
    ]


def _enqueue(
    study: MethodStudy,
    search: SearchRecord,
    run: LoadedRun,
    records: Sequence[TrialRecord],
    top: int,
) -> int:
    """Let the best points be tried first; returns their number."""
    # With other domains, the objective may have another name in the earlier run.
    measured = any(search.values(record) for record in records)
    points = best_points(search if measured else run.search, records, top)
    if not points:
        raise ConfigError(
            "it has no finished trial", key="search.warm_start.runs", source=run.folder
        )
    if study.grid is not None:  # it goes on after these points, and has each point once
        tried = [trial.params for trial in study.study.get_trials(deepcopy=False)]
        first = [dict(r.params) for r in points if r.params not in tried]
        study.grid = deque([*first, *(point for point in study.grid if point not in first)])
        return len(points)
    for record in points:
        study.study.enqueue_trial(
            dict(record.params),
            user_attrs={WARM_START: f"{run.folder.name}/{record.trial_id}"},
            skip_if_exists=True,
        )
    return len(points)


def _observe(
    study: MethodStudy, search: SearchRecord, run: LoadedRun, records: Sequence[TrialRecord]
) -> None:
    """Add the trials of a run to a study, shifted by the difference of the zero-shot models."""
    zero_shot = run.search.zero_shot
    shift = {
        name: value - zero_shot[name]
        for name, value in search.zero_shot.items()
        if name in zero_shot
    }
    shifted = [
        replace(
            record,
            curve=tuple(
                {name: value + shift.get(name, 0.0) for name, value in report.items()}
                for report in record.curve
            ),
        )
        for record in records
    ]
    for record in shifted:
        study.bests = search.with_bests(study.bests, record)
    for record in shifted:
        study.add(record, study.bests, {WARM_START: f"{run.folder.name}/{record.trial_id}"})
