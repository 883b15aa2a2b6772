"""What a new search takes over from earlier ones: their best points are tried first.

They replace the points of `search.prior`, unless they are so few that the sampler would go on at
random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from trainers.errors import ConfigError
from tuning.algorithms.studies import MethodStudy, is_inside, point_of
from tuning.config.schema import SearchFile
from tuning.log.records import METHOD_KEY
from tuning.results.goal import Goal
from tuning.results.ranking import finished_trials, ranked
from tuning.results.rules import saw_ood
from tuning.run import Run, load_run

_KEY = "search.warm_start.runs"

Earlier: TypeAlias = Mapping[str, Run | ConfigError]
"""Earlier runs by their folders in the configuration; the error, if one cannot be read."""


def load_earlier(file: SearchFile) -> Earlier:
    """The runs of `search.warm_start.runs`."""

    def load(folder: str) -> Run | ConfigError:
        try:
            return load_run(Path(folder).expanduser())
        except ConfigError as error:
            return ConfigError(str(error), key=_KEY)

    return {folder: load(folder) for folder in file.search.warm_start.runs}


def warm_start(
    studies: Sequence[MethodStudy],
    file: SearchFile,
    goal: Goal,
    earlier: Earlier,
    strict: bool = True,
) -> list[str]:
    """Enqueue the best points of earlier runs in studies without trials; a line about each run.

    Each study gets the points of its own method, whether the earlier run compared methods or not.
    Unless `strict`, a run that does not fit is left out.
    """
    lines: list[str] = []
    for folder, run in earlier.items():
        try:
            if isinstance(run, ConfigError):
                raise run
            count = sum(_enqueue(study, run, file, goal) for study in studies)
            if not count:
                one = "one of these methods" if studies[0].method else "this space"
                names = ", ".join(s.method or ", ".join(s.space.parameters) for s in studies)
                problem = f"no finished trial has the parameters of {one} ({names})"
                raise ConfigError(f"{problem} in its ranges", key=_KEY, source=folder)
            used_ood = " (chosen with OOD validation data)" if saw_ood(run.goal) else ""
            lines.append(f"{folder}: its best {count} points are tried first{used_ood}")
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
    runs = [run for run in earlier.values() if not isinstance(run, ConfigError)]
    domains = file.trial.data.ood_domains
    return any(saw_ood(run.goal) or run.file.trial.data.id_domain in domains for run in runs)


def _enqueue(study: MethodStudy, run: Run, file: SearchFile, goal: Goal) -> int:
    """Let a study try the best points of a run first; returns their number."""
    wanted = study.method or file.trial.method.name
    finished = [
        record
        for record in finished_trials(run.records)
        # Two searches of a single method each learn from each other, if parameters are the same.
        if (study.method is None and METHOD_KEY not in record.params)
        or run.method(record) == wanted
    ]
    fitting = [record for record in finished if is_inside(point_of(record), study.space)]
    # With other domains, the objective may have another name in the earlier run.
    of = goal if any(goal.values(record) for record in fitting) else run.goal
    points = [point_of(record) for record in ranked(of, fitting) if of.values(record)]
    points = points[: file.search.warm_start.top]
    study.queue.extend(point for point in points if point not in study.queue)
    startup = (study.config and study.config.startup_trials) or 1
    study.is_warm |= len(study.queue) >= min(file.search.warm_start.top, startup)
    return len(points)
