"""Reading, validating and checking a configuration before anything runs.

Command-line keys are the dotted paths of the file: ``--set trial.steps=500`` or
``--set search.budget.trials=20``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from search_spaces import Categorical, SearchSpace
from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError, suggestion, validate
from trainers.evaluation.metrics import DIRECTIONS, ID_ACC, direction, metric_names
from tuning.config.loading import read_layers, refuse_secrets
from tuning.config.objectives import check_meaning
from tuning.config.schema import NoSchedulerConfig, SearchFile
from tuning.config.search_space import SpaceConfig
from tuning.runs.records import METHOD_KEY

logger = logging.getLogger(__name__)

FIXED = frozenset({"steps", "eval.every", "eval.rung_images"})
"""Keys of the trial that are the same for all trials: pruning compares them at the same steps, and
on the same images."""


def load_config(
    source: str | Path, overrides: Iterable[str] = (), *, check: bool = True
) -> SearchFile:
    """Read, override, validate and check a configuration.

    Args:
        source: a YAML file, or the name of a ready one such as `quickstart`, optionally with
            `:VARIANT`.
        overrides: ``key=value`` with dotted keys; values are YAML.
        check: also check that it can run on this machine, including data and model.

    Raises:
        ConfigError: with one line for each mistake: file or `--set`, key, value and problem.
    """
    origin, values = read_layers(source, overrides)
    file = validate(SearchFile, values, origin.of)
    if check:
        try:
            check_search(file)
        except ConfigError as error:
            raise error.within(origin.of(error.key)) from None
    return file


class _TrialFile(SearchFile):
    """A configuration file whose `search:` section does not matter."""

    search: Any = None


def load_trial(source: str | Path, overrides: Iterable[str] = ()) -> TrialConfig:
    """The `trial:` section alone, read and checked as by `load_config`.

    Raises:
        ConfigError: with one line for each mistake in that section.
    """
    origin, values = read_layers(source, overrides)
    trial = validate(_TrialFile, values, origin.of).trial
    from trainers.checks import check_trials  # with torch

    try:
        check_trials([trial])
    except ConfigError as error:
        raise error.within(origin.of(error.key)) from None
    return trial


def check_search(file: SearchFile) -> None:
    """Raise a ConfigError for everything that is known to fail before a worker starts."""
    # Commands that show a configuration or a run start without torch.
    from trainers.checks import check_trials

    check_settings(file)
    space = file.search_space()
    method: str | None = None
    point: dict[str, Any] = {}

    def extreme_trials() -> Iterator[TrialConfig]:
        nonlocal method, point
        for method, part in space.parts().items():
            # Points that together reach every bound and every choice, then the first points.
            values = {
                key: list(p.choices) if isinstance(p, Categorical) else [p.low, p.high]
                for key, p in part.parameters.items()
            }
            extremes = [
                {key: of_key[min(index, len(of_key) - 1)] for key, of_key in values.items()}
                for index in range(max(map(len, values.values()), default=0))
            ]
            for point in (*extremes, *part.initial_points):
                own = {} if method is None else {METHOD_KEY: method}
                yield file.trial_config({**own, **point})

    try:
        check_trials(extreme_trials())
    except ConfigError as error:
        if method is not None and error.key == "method.name":
            hint = f"or remove {method!r}"
            raise ConfigError(str(error), key="search.space.methods", hint=hint) from None
        if error.key not in point:
            raise
        # Name the bound of the parameter: the trial's own value may be right.
        parameter = space.parts()[method].parameters[error.key]
        field = "choices"
        if not isinstance(parameter, Categorical):
            field = "high" if point[error.key] == parameter.high else "low"
        section = _section_of(error.key, method, file.search.space)
        raise ConfigError(
            error.problem, key=f"{section}.{error.key}.{field}", value=error.value, hint=error.hint
        ) from None


def check_settings(file: SearchFile) -> None:
    """The part of `check_search` that needs neither data nor models, which may be elsewhere."""
    trial, search, space = file.trial, file.search, file.search_space()
    _check_keys(search.space, space, trial)
    _check_objective(file)
    if len(set(search.references)) < len(search.references):
        raise ConfigError("one is given twice", key="search.references", value=search.references)
    for name in search.references:
        file.reference_config(name)

    # All workers of a trial take the same share of a batch, whatever their number.
    batch_sizes: list[tuple[str, Any]] = [("trial.optim.batch_size", trial.optim.batch_size)]
    for method, part in space.parts().items():
        searched = part.parameters.get("optim.batch_size")
        section = _section_of("optim.batch_size", method, search.space)
        if isinstance(searched, Categorical):
            choices = [size for size in searched.choices if isinstance(size, int)]
            batch_sizes += [(f"{section}.optim.batch_size", size) for size in choices]
        elif searched is not None:  # its other values are as many further steps apart
            second = min(searched.low + (searched.step or 1), searched.high)
            batch_sizes += [(f"{section}.optim.batch_size", n) for n in (searched.low, second)]
    for workers in reversed(search.resources.sizes):
        for where, size in batch_sizes:
            if size % workers:
                key = "workers" if workers == search.resources.workers else "min_workers"
                raise ConfigError(
                    f"not divisible by {workers} workers (search.resources.{key})",
                    key=where,
                    value=size,
                )
    scheduler = search.scheduler
    grace_steps = None if isinstance(scheduler, NoSchedulerConfig) else scheduler.grace_steps
    if grace_steps is not None and grace_steps > trial.steps:
        raise ConfigError(
            f"more than trial.steps = {trial.steps}",
            key="search.scheduler.grace_steps",
            value=grace_steps,
            hint="null is two thirds of the steps",
        )
    if trial.eval.every > trial.steps:
        logger.warning(
            "trial.eval.every = %d: more than trial.steps = %d, so nothing is reported before the "
            "last step%s",
            trial.eval.every,
            trial.steps,
            "" if scheduler.name == "none" else ", and no trial is stopped early",
        )
    refuse_secrets(file.model_dump(mode="json"))  # one made in Python was not read from a file

    # Optuna refuses these only in the middle of a search.
    if search.sampler.name == "cma_es":
        key = "search.sampler.name"
        if len(file.objectives) > 1:
            raise ConfigError("supports a single objective only", key=key, value="cma_es")
        for method, part in space.parts().items():
            numeric = [p for p in part.parameters.values() if not isinstance(p, Categorical)]
            if len(numeric) < 2:
                where = "" if method is None else f" for {method!r}"
                problem = f"needs at least two numeric parameters{where}"
                raise ConfigError(problem, key=key, value="cma_es")
    _check_budget(file)


def _check_keys(config: SpaceConfig, space: SearchSpace, trial: TrialConfig) -> None:
    """Raise a ConfigError if a searched setting of the method does not exist or has no effect."""
    for name, part in space.parts().items():
        for key in FIXED & part.parameters.keys():
            raise ConfigError("cannot be searched", key=f"{_section_of(key, name, config)}.{key}")
        override = {} if name is None else {METHOD_KEY: name}
        method = with_overrides(trial, override, "search.space.methods").method
        settings = {
            key.removeprefix("method."): parameter
            for key, parameter in part.parameters.items()
            if key.startswith("method.")
        }
        varied = {
            setting
            for setting, parameter in settings.items()
            if not isinstance(parameter, Categorical) or len(parameter.choices) > 1
        }
        # If a choice is searched, other settings may have an effect for one of its values only.
        several_choices = any(isinstance(settings[setting], Categorical) for setting in varied)
        for setting in settings:
            key = f"method.{setting}"
            where = f"{_section_of(key, name, config)}.{key}"
            if setting not in type(method).model_fields:
                known = [known for known in type(method).model_fields if known != "name"]
                hint = suggestion(setting, known)
                if name is None and config.name and key not in config.parameters:
                    hint = f"write search.space.name = {method.name!r}"
                raise ConfigError(
                    f"method.name = {method.name!r} has no {setting!r}", key=where, hint=hint
                )
            if setting in method.idle and setting in varied and not several_choices:
                fixed = getattr(method, setting)
                raise ConfigError(
                    "has no effect with the method's other settings",
                    key=where,
                    hint=f"write {{type: categorical, choices: [{fixed}]}}",
                )


def _section_of(key: str, method: str | None, config: SpaceConfig) -> str:
    """The section of the configuration in which a parameter of the space is, or can be, written."""
    is_own = method is not None and key not in config.parameters
    return f"search.space.by_method.{method}.parameters" if is_own else "search.space.parameters"


def _check_objective(file: SearchFile) -> None:
    from trainers.fine_tune import REPORTED

    key = "search.objective.metric"
    known = [*metric_names(file.trial.data), *REPORTED]
    for objective, configured in zip(file.objectives, file.search.objective, strict=True):
        if objective.metric.startswith("line/"):
            raise ConfigError(
                "is reported after the last step only",
                key=key,
                value=objective.metric,
                hint="trial.eval.line chooses the point, whose metrics have no prefix",
            )
        if objective.metric not in known:
            # Not the other kind: whoever means OOD accuracy must not be led to ID accuracy.
            wants_id = objective.metric.startswith("id")
            alike = [name for name in known if name.startswith("id") == wants_id]
            hint = suggestion(objective.metric, alike)
            if not file.trial.data.ood_domains and not wants_id:
                hint = f"without OOD domains, the objective can be {ID_ACC}"
            raise ConfigError("is never reported", key=key, value=objective.metric, hint=hint)
        known_mode = direction(objective.metric)
        if known_mode is None and "mode" not in configured.model_fields_set:
            raise ConfigError(
                f"not known whether more or less of {objective.metric} is better",
                key="search.objective.mode",
                hint="write max or min",
            )
        if known_mode not in (None, objective.mode):
            raise ConfigError(
                f"{'more' if known_mode == 'max' else 'less'} of {objective.metric} is better",
                key="search.objective.mode",
                value=objective.mode,
                hint=f"write {known_mode}, or leave it out",
            )
    chosen = file.search.sampler.metric
    if chosen not in ("auto", "objective", *known):
        hint = suggestion(chosen, ["auto", "objective", *known])
        key = "search.sampler.metric"
        raise ConfigError("is never reported", key=key, value=chosen, hint=hint)
    is_objective = chosen in ("auto", "objective", file.objectives[0].metric)
    if not is_objective and direction(chosen) is None:
        hint = f"measures for which it is: {', '.join(DIRECTIONS)}"
        problem = "not known whether more or less of it is better"
        raise ConfigError(problem, key="search.sampler.metric", value=chosen, hint=hint)
    if chosen not in ("auto", "objective") and len(file.objectives) > 1:
        problem = "of several objectives, the sampler optimises all"
        raise ConfigError(
            problem, key="search.sampler.metric", value=chosen, hint="write objective"
        )
    if len({objective.metric for objective in file.objectives}) < len(file.objectives):
        raise ConfigError("a metric is given twice", key="search.objective")
    constraints = file.constraints()
    try:
        check_meaning(constraints)
    except ValueError as error:
        raise ConfigError(str(error), key="search.constraints") from None


def _check_budget(file: SearchFile) -> None:
    budget, methods = file.search.budget, len(file.search.space.methods)
    if budget.gpu_hours is not None and not file.search.resources.gpus_per_worker:
        raise ConfigError(
            "trials take no GPU (search.resources.gpus_per_worker = 0)",
            key="search.budget.gpu_hours",
            value=budget.gpu_hours,
            hint="use search.budget.hours",
        )
    if budget.target is not None and len(file.objectives) > 1:
        problem = "a target needs a single objective"
        raise ConfigError(problem, key="search.budget.target", value=budget.target)
    is_percent = file.objectives[0].metric.endswith("acc")
    if budget.target is not None and is_percent and not 1 <= budget.target <= 100:
        problem = "accuracies are in percent, from 1 to 100"
        raise ConfigError(problem, key="search.budget.target", value=budget.target)
    if budget.trials < methods:
        raise ConfigError(
            f"fewer than the {methods} of search.space.methods, which get as many trials each",
            key="search.budget.trials",
            value=budget.trials,
        )
    if methods and budget.trials % methods:
        logger.warning(
            "search.budget.trials = %d: not a multiple of the %d of search.space.methods, so some "
            "methods get one trial more than others",
            budget.trials,
            methods,
        )
