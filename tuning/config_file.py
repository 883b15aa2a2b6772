"""Configuration files: read from YAML, overridden, validated and checked before anything runs.

Command-line keys are the dotted paths of the file: ``--set trial.steps=500`` or
``--set search.budget.trials=20``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from search_spaces import Categorical, SearchSpace
from trainers.checks import check_trial
from trainers.dotted import nest
from trainers.errors import ConfigError, did_you_mean, validate
from trainers.evaluation import metric_names
from trainers.fine_tune import REPORTED
from tuning.config import NoSchedulerConfig, SearchFile

_PARAMETERS = "search.space.parameters."
_PARAMETER_FIELDS = ("type", "low", "high", "log", "step", "choices")
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
        source: a YAML file, or the name of a ready one such as `quickstart`.
        overrides: ``key=value`` with dotted keys; values are YAML.
        check: see to it that it can run here and now, data and all; without, it is only read.

    Raises:
        ConfigError: one line for each mistake, naming the file, the key and the value.
    """
    path = find_config(source)
    values = _read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override!r}: write it as key=value")
        try:
            values = _override(values, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: {_yaml_problem(error)}") from None
    file = validate(SearchFile, values, str(path))
    try:
        if check:
            check_search(file)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return file


def _override(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with one more key; the names of searched parameters have dots of their own."""
    if not key.startswith(_PARAMETERS):
        return nest({key: value}, values)
    name, field = key.removeprefix(_PARAMETERS), ""
    if name.rpartition(".")[2] in _PARAMETER_FIELDS:
        name, _, field = name.rpartition(".")
    parameters: Any = values
    for part in ("search", "space", "parameters"):
        parameters = parameters.get(part) or {}
        if not isinstance(parameters, Mapping):
            return values  # which validation refuses
    if not field:
        return nest({_PARAMETERS.rstrip("."): {**parameters, name: value}}, values)
    given = parameters.get(name) or {}
    if not isinstance(given, Mapping):
        return values
    return nest({_PARAMETERS.rstrip("."): {**parameters, name: {**given, field: value}}}, values)


def find_config(source: str | Path) -> Path:
    """The file itself, or the ready configuration of that name."""
    path = Path(source)
    if path.is_file():
        return path
    ready = Path(str(resources.files("search_spaces"))) / "configs"
    named = ready / f"{source}.yaml"
    if named.is_file():
        return named
    names = [file.stem for file in ready.glob("*.yaml")]
    raise ConfigError(
        f"{source}: no such file, nor a ready configuration{did_you_mean(str(source), names)}"
    )


def check_search(file: SearchFile) -> None:
    """Raise a `ConfigError` for whatever can be known to fail before a worker starts."""
    space = file.search_space()
    for point in _extreme_points(space):
        check_trial(file.trial_config(point))
    for name in file.search.references:
        file.reference_config(name)
    _check_objective(file)
    batch, workers = file.trial.optim.batch_size, file.search.resources.workers
    if batch % workers:
        raise ConfigError(
            f"trial.optim.batch_size = {batch}: not divisible by search.resources.workers = "
            f"{workers}"
        )
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
        if _has_password(url or ""):
            raise ConfigError(
                f"{key}: a password does not belong in a file; write ${{NAME}} in its place, and "
                "set that variable in the environment"
            )
    _check_sampler(file, space)
    _check_budget(file)


def _has_password(url: str) -> bool:
    passwords = [group for found in _PASSWORD.findall(url) for group in found if group]
    return any(not _FROM_ENVIRONMENT.fullmatch(password) for password in passwords)


def _check_objective(file: SearchFile) -> None:
    known = [*metric_names(file.trial.data), *REPORTED]
    for objective in file.objectives:
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
        numeric = [p for p in space.parameters.values() if not isinstance(p, Categorical)]
        if len(numeric) < 2:
            raise ConfigError(
                "search.sampler.name = 'cma_es': it needs two parameters or more that are numbers"
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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected the sections `trial:` and `search:`")
    return values


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
