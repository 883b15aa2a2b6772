"""What a new search learns from earlier ones.

If trial, data and objectives are the same, the sampler gets the earlier results as observations.
Other results do not compare, but good parameters carry over: the best points are tried first.
Either replaces the points of `search.prior`, unless they are so few that the sampler would go on at
random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from trainers.errors import ConfigError
from tuning.algorithms.studies import MethodStudy, is_inside, point_of
from tuning.config.schema import ELSEWHERE, SearchFile
from tuning.runs.environment import check_same_inputs, seen_at_start
from tuning.runs.ranking import ranked
from tuning.runs.records import METHOD_KEY, SearchRecord, TrialRecord
from tuning.runs.run_folder import RunFolder, load_run

_KEY = "search.warm_start.runs"

Earlier: TypeAlias = Mapping[str, RunFolder | ConfigError]
"""Earlier runs by their folders in the configuration; the error, if one cannot be read."""


def load_earlier(file: SearchFile) -> Earlier:
    """The runs of `search.warm_start.runs`."""

    def load(folder: str) -> RunFolder | ConfigError:
        try:
            return load_run(Path(folder).expanduser())
        except ConfigError as error:
            return ConfigError(str(error), key=_KEY)

    return {folder: load(folder) for folder in file.search.warm_start.runs}


def warm_start(
    studies: Sequence[MethodStudy],
    file: SearchFile,
    search: SearchRecord,
    earlier: Earlier,
    strict: bool = True,
) -> list[str]:
    """Give earlier runs to studies without trials; returns a line about each run and method.

    Each study gets the trials of its own method, whether the earlier run compared methods or not.

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
            found = [line for study in studies if (line := _learn(study, run, file, search))]
            if not found:
                one = "one of these methods" if studies[0].method else "this space"
                names = ", ".join(s.method or ", ".join(s.space.parameters) for s in studies)
                problem = f"no finished or pruned trial has the parameters of {one} ({names})"
                raise ConfigError(f"{problem} in its ranges", key=_KEY, source=folder)
            lines += [f"{folder}: {line}" for line in found]
        except ConfigError as error:
            if strict:
                raise
            lines.append(f"{folder}: not used any more: {error.problem}")
            for study in studies:  # the run may have replaced the prior when the trials began
                study.is_warm = True
    return lines


def warm_start_uses_ood(file: SearchFile, earlier: Earlier) -> bool:
    """Whether an earlier run used OOD validation data.

    The validation data of its ID domain count, too, if that domain is OOD in this search. A run
    that cannot be read does not count; `warm_start` reports it.
    """
    searches = [run.search for run in earlier.values() if not isinstance(run, ConfigError)]
    domains = file.trial.data.ood_domains
    return any(search.sees_ood or search.id_domain in domains for search in searches)


def same_task(run: RunFolder, record: TrialRecord, file: SearchFile, study: MethodStudy) -> bool:
    """Whether a trial of that run would measure the same in this search, for the same objectives.

    Its trial, data, weights of the model and plug-ins are then the same.
    """
    method = {key: value for key, value in record.params.items() if key == METHOD_KEY}
    then, now = (
        config.model_dump(exclude={"data": set(ELSEWHERE)})
        for config in (run.file.trial_config(method), file.trial_config(study.params({})))
    )
    is_same = then == now and run.search.objectives == study.search.objectives
    if not is_same or seen_at_start(run.folder) is None:
        return False
    try:
        check_same_inputs(run.folder, file.trial)
    except ConfigError:
        return False
    return True


def _learn(study: MethodStudy, run: RunFolder, file: SearchFile, search: SearchRecord) -> str:
    """Give a study its trials of a run; returns a line about them, empty if there are none."""
    wanted, then = study.method or file.trial.method.name, run.search

    def fits(record: TrialRecord) -> bool:
        # Two searches of a single method learn from each other if their parameters are the same.
        compared = study.method is not None or METHOD_KEY in record.params
        own = not compared or then.method(record) == wanted
        is_over = record.kind == "trial" and record.outcome in ("finished", "pruned")
        return is_over and own and is_inside(point_of(record), study.space)

    fitting = [record for record in run.history.records if fits(record)]
    prefix = "" if study.method is None else f"{study.method}: "
    # Without a metric of the sampler or of a constraint, a trial would be taken for a failure.
    metrics = {objective.metric for objective in search.sampler_objectives}
    metrics |= {constraint.metric for constraint in search.constraints}
    observed = [record for record in fitting if metrics <= record.metrics.keys()]
    top, enough = file.search.warm_start.top, (study.config and study.config.startup_trials) or 1
    if observed and same_task(run, observed[0], file, study):
        for record in observed:
            point = replace(record, params=point_of(record))
            study.observe(point, f"{run.folder.name}/{record.trial_id}")
        study.is_warm |= len(study.finished) >= enough
        return f"{prefix}{len(observed)} trials as observations"
    # With other domains, the objective may have another name in the earlier run.
    measured = any(search.values(record) for record in fitting)
    of = search if measured else then
    finished = [record for record in fitting if record.outcome == "finished"]
    # The Pareto front comes first.
    new = [point_of(record) for record in ranked(of, finished) if of.values(record)][:top]
    study.queue.extend(point for point in new if point not in study.queue)
    study.is_warm |= len(study.finished) + len(study.queue) >= min(top, enough)
    saw_ood = " (chosen with OOD validation data)" if then.sees_ood else ""
    return f"{prefix}its best {len(new)} points are tried first{saw_ood}" if new else ""
