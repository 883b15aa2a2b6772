"""Configuration files: read, validated and checked before anything runs.

Command-line keys are the dotted paths of the file: ``--set trial.steps=500`` or
``--set search.budget.trials=20``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from search_spaces import Categorical, SearchSpace
from trainers.checks import check_trial, check_trials
from trainers.config import TrialConfig
from trainers.data.storage import refuse_secrets
from trainers.errors import ConfigError, did_you_mean, validate
from trainers.evaluation.evaluate import metric_names
from trainers.fine_tune import reported
from trainers.methods import FineTuning, Method, check_method_fits
from tuning.config.early_stopping import NoSchedulerConfig
from tuning.config.loading import read_layers
from tuning.config.schema import SearchFile
from tuning.config.search_space import check_keys
from tuning.runs.records import METHOD_KEY

logger = logging.getLogger(__name__)

_PASSWORD = re.compile(
    r"://[^:/@]*:([^@]+)@|https?://([^:/@]+)@|[?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=([^&]+)",
    re.I,
)
_FROM_ENVIRONMENT = re.compile(r"\$\{\w+\}")


def load_config(
    source: str | Path, overrides: Iterable[str] = (), *, check: bool = True
) -> SearchFile:
    """Read, override, validate and check a configuration.

    Args:
        source: a YAML file, or the name of a ready one such as `quickstart`; `:VARIANT` after it
            picks one of its variants.
        overrides: ``key=value`` with dotted keys; values are YAML.
        check: see to it that it can run here and now, data and all; without, it is only read.

    Raises:
        ConfigError: one line for each mistake, naming the file, the key and the value.
    """
    name, values = read_layers(source, overrides)
    file = validate(SearchFile, values, name)
    try:
        if check:
            check_search(file)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return file


class _TrialFile(BaseModel):
    """A configuration file of which the search does not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: TrialConfig = TrialConfig()
    search: Any = None


def load_trial(source: str | Path, overrides: Iterable[str] = ()) -> TrialConfig:
    """The `trial:` section alone, as `load_config` reads it, and checked like that.

    Raises:
        ConfigError: one line for each mistake in that section; the search may say anything.
    """
    name, values = read_layers(source, overrides)
    trial = validate(_TrialFile, values, name).trial
    try:
        check_trial(trial)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return trial


def check_search(file: SearchFile) -> None:
    """Raise a `ConfigError` for whatever can be known to fail before a worker starts."""
    space = file.search_space()
    check_keys(file.search.space, space, file.trial)
    try:
        check_trials(
            file.trial_config(point if method is None else {METHOD_KEY: method, **point})
            for method, part in space.parts().items()
            for point in _extreme_points(part)
        )
    except ConfigError as error:
        if method := _misfit(file, space, str(error)):
            raise ConfigError(
                f"search.space.methods: {error}; or leave {method!r} out of them"
            ) from None
        raise
    check_settings(file)


def check_settings(file: SearchFile) -> None:
    """The part of `check_search` that looks at neither data nor models: these may be elsewhere."""
    space = file.search_space()
    check_keys(file.search.space, space, file.trial)
    for name in file.search.references:
        file.reference_config(name)
    _check_objective(file)
    _check_batch(file)
    scheduler = file.search.scheduler
    if not isinstance(scheduler, NoSchedulerConfig) and scheduler.grace_steps > file.trial.steps:
        raise ConfigError(
            f"search.scheduler.grace_steps = {scheduler.grace_steps}: "
            f"more than trial.steps = {file.trial.steps}"
        )
    for key, url in (
        ("search.study_storage", file.search.study_storage),
        ("search.tracking.uri", file.search.tracking.uri),
    ):
        if has_password(url or ""):
            raise ConfigError(
                f"{key}: a password does not belong in a file; write ${{NAME}} in its place, and "
                "set that variable in the environment"
            )
    _check_sampler(file, space)
    refuse_secrets(file.search.checkpoints.storage or "")
    _check_budget(file)


def _check_batch(file: SearchFile) -> None:
    """Each worker of a trial takes the same share of a batch, however many of them there are."""
    batch, resources = file.trial.optim.batch_size, file.search.resources
    for workers in reversed(resources.sizes):
        if batch % workers == 0:
            continue
        if workers == resources.workers:
            raise ConfigError(
                f"trial.optim.batch_size = {batch}: not divisible by search.resources.workers = "
                f"{workers}"
            )
        raise ConfigError(
            f"search.resources.min_workers = {resources.min_workers}: a trial may then have "
            f"{workers} workers, by which trial.optim.batch_size = {batch} is not divisible"
        )


def has_password(url: str) -> bool:
    """Whether a URL holds a password or token itself, and not `${NAME}` in its place."""
    passwords = [group for found in _PASSWORD.findall(url) for group in found if group]
    return any(not _FROM_ENVIRONMENT.fullmatch(password) for password in passwords)


def _misfit(file: SearchFile, space: SearchSpace, message: str) -> str | None:
    """The method among several that says this of the model, with whatever parameters."""

    def says(method: Method) -> bool:
        try:
            check_method_fits(method, file.trial.model)
        except ConfigError as error:
            return str(error) == message
        return False

    if says(FineTuning()):  # of the model itself
        return None
    methods = {name: file.trial_config({METHOD_KEY: name}).method for name in space.branches}
    return next((name for name, method in methods.items() if says(method)), None)


def _check_objective(file: SearchFile) -> None:
    known = [*metric_names(file.trial.data), *reported(file.trial.model)]
    for objective in file.objectives:
        if objective.metric.startswith("wise/"):
            raise ConfigError(
                f"search.objective.metric = {objective.metric!r}: reported after the last step "
                "alone; search over method.name = 'wise_ft' and its alpha"
            )
        if objective.metric not in known:
            raise ConfigError(
                f"search.objective.metric = {objective.metric!r} is never reported"
                f"{did_you_mean(objective.metric, known)}"
            )
    if len({objective.metric for objective in file.objectives}) < len(file.objectives):
        raise ConfigError("search.objective: a metric is named twice")
    file.constraints()


def _check_sampler(file: SearchFile, space: SearchSpace) -> None:
    """What Optuna itself would refuse in the middle of a search."""
    name = file.search.sampler.name
    if name == "cma_es":
        if len(file.objectives) > 1:
            raise ConfigError("search.sampler.name = 'cma_es': it takes one objective only")
        for method, part in space.parts().items():
            numeric = [p for p in part.parameters.values() if not isinstance(p, Categorical)]
            if len(numeric) < 2:
                where = "" if method is None else f", which {method!r} has not"
                raise ConfigError(
                    "search.sampler.name = 'cma_es': it needs two parameters or more that are "
                    f"numbers{where}"
                )


def _check_budget(file: SearchFile) -> None:
    budget, resources = file.search.budget, file.search.resources
    if budget.gpu_hours is not None and not resources.gpus_per_worker:
        raise ConfigError(
            f"search.budget.gpu_hours = {budget.gpu_hours:g}: trials take no GPU "
            "(search.resources.gpus_per_worker = 0); use search.budget.hours"
        )
    if budget.target is not None and len(file.objectives) > 1:
        raise ConfigError(
            f"search.budget.target = {budget.target:g}: a target needs a single objective"
        )
    methods = len(file.search.space.methods)
    if budget.trials < methods:
        raise ConfigError(
            f"search.budget.trials = {budget.trials}: fewer than the {methods} of "
            "search.space.methods; each needs a trial, and all of them as many"
        )
    if methods and budget.trials % methods:
        logger.warning(
            "search.budget.trials = %d: no multiple of the %d of search.space.methods, so some "
            "get a trial more than others",
            budget.trials,
            methods,
        )


def _extreme_points(space: SearchSpace) -> Iterable[dict[str, Any]]:
    """Points that reach every bound and every choice, then those that are tried first."""
    choices: dict[str, list[Any]] = {}
    for key, parameter in space.parameters.items():
        if isinstance(parameter, Categorical):
            choices[key] = list(parameter.choices)
        else:
            choices[key] = [parameter.low, parameter.high]
    most = max((len(values) for values in choices.values()), default=0)
    for index in range(most):
        yield {key: values[min(index, len(values) - 1)] for key, values in choices.items()}
    yield from space.initial_points
