"""What one search is: a `SearchFile`, read from YAML and checked as a whole before anything runs.

A file has two sections. `trial:` is the base `TrialConfig`; `search:` says what is varied, how it
is proposed and stopped, what is maximised, and on which resources. Command-line keys are the same
dotted paths: ``--set trial.steps=500`` or ``--set search.budget.trials=20``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import search_spaces
from search_spaces import Categorical, SearchSpace
from trainers.checks import check_trial
from trainers.config import TrialConfig, with_overrides
from trainers.dotted import nest
from trainers.errors import ConfigError, did_you_mean, validate
from trainers.evaluation import metric_names
from trainers.fine_tune import REPORTED


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SpaceConfig(_Frozen):
    """What is searched: a ready space, with parameters replaced or added, or one of its own."""

    name: str | None = "lipsum_ft"
    """A ready space of `search_spaces`; null starts from an empty one."""
    parameters: dict[str, dict[str, Any]] = {}
    """Dotted key to `{type: float|int|categorical, low, high, log, step, choices}`."""
    initial_points: tuple[dict[str, Any], ...] | None = None
    """Tried first, in order; by default those of the ready space."""


class SamplerConfig(_Frozen):
    """Who proposes configurations: one of Optuna's samplers."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(default=0, ge=0)
    startup_trials: int = Field(default=6, ge=1)
    """Random proposals before TPE starts to learn."""


class AshaConfig(_Frozen):
    """Asynchronous successive halving (Li et al., MLSys 2020) on optimiser steps."""

    name: Literal["asha"] = "asha"
    grace_steps: int = Field(ge=1)
    """No trial is stopped before this step; the first rung."""
    reduction_factor: float = Field(default=3, gt=1)
    """Of the trials that reach a rung, one in so many goes on."""


class NoSchedulerConfig(_Frozen):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


class ObjectiveConfig(_Frozen):
    """What is optimised, at the last step of a trial. Validation splits only."""

    metric: str = "val/mean_acc"
    mode: Literal["max", "min"] = "max"


class BudgetConfig(_Frozen):
    """What ends the search."""

    trials: int = Field(default=20, ge=1)
    """Trials that the sampler proposes; references come on top."""


class ResourcesConfig(_Frozen):
    """What one trial takes; how many run at once follows from what the cluster has."""

    workers: int = Field(default=1, ge=1)
    """Data-parallel processes a trial."""
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    """May be a fraction: several trials then share a GPU."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """A ceiling on the trials at once; null takes all that fits."""
    max_failures: int = Field(default=0, ge=0)
    """Worker failures that a trial survives by starting again from its checkpoint."""


class TrackingConfig(_Frozen):
    """Where MLflow keeps the record."""

    uri: str | None = None
    """Any tracking URI; null is a SQLite database in the folder of runs."""
    experiment: str = "lipsum-tune"


SchedulerConfig = Annotated[AshaConfig | NoSchedulerConfig, Field(discriminator="name")]


class SearchConfig(_Frozen):
    """The `search:` section."""

    name: str = Field(default="search", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run folder, the MLflow run and the Optuna study."""
    space: SpaceConfig = SpaceConfig()
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = NoSchedulerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    budget: BudgetConfig = BudgetConfig()
    references: tuple[Literal["ft"], ...] = ("ft",)
    """Run beside the search for comparison, with the trial's own settings, never stopped early."""
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: str = "runs"
    """Folder of run folders; on several nodes, one that all of them reach."""


class SearchFile(_Frozen):
    """A whole configuration file."""

    trial: TrialConfig = TrialConfig()
    search: SearchConfig = SearchConfig()

    def search_space(self) -> SearchSpace:
        """The space as the sampler needs it.

        Raises:
            ConfigError: an unknown ready space, or a parameter that makes no sense.
        """
        space = self.search.space
        try:
            ready = search_spaces.load(space.name) if space.name else None
            parameters = {**(ready.model_dump()["parameters"] if ready else {}), **space.parameters}
            points = space.initial_points
            if points is None:
                points = tuple(ready.initial_points) if ready else ()
            return SearchSpace.model_validate(
                {"parameters": parameters, "initial_points": list(points)}
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(["search.space", *(str(part) for part in first["loc"])])
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{where} = {first['input']!r}: {message}") from None
        except ValueError as error:
            raise ConfigError(f"search.space.name = {space.name!r}: {error}") from None

    def trial_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """The base trial with a proposal laid over it."""
        return with_overrides(self.trial, params, "search.space")

    def reference_config(self, name: str) -> TrialConfig:
        """The base trial with the reference's method."""
        values = self.trial.model_dump(mode="json") | {"method": {"name": name}}
        return validate(TrialConfig, values, "search.references")


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> SearchFile:
    """Read, override, validate and check a configuration.

    Args:
        source: a YAML file, or the name of a ready one such as `quickstart`.
        overrides: ``key=value`` with dotted keys; values are YAML.

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
            values = nest({key.strip(): yaml.safe_load(text)}, values)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: {error}") from None
    file = validate(SearchFile, values, str(path))
    try:
        check_search(file)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return file


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
    if isinstance(scheduler, AshaConfig) and scheduler.grace_steps > file.trial.steps:
        raise ConfigError(
            f"search.scheduler.grace_steps = {scheduler.grace_steps}: "
            f"more than trial.steps = {file.trial.steps}"
        )


def _check_objective(file: SearchFile) -> None:
    metric = file.search.objective.metric
    known = [*metric_names(file.trial.data), *REPORTED]
    if metric not in known:
        raise ConfigError(
            f"search.objective.metric = {metric!r} is never reported{did_you_mean(metric, known)}"
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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected the sections `trial:` and `search:`")
    return values
