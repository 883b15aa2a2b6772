"""Reading, validating and checking a configuration before anything runs.

Command-line keys are the dotted paths of the file: ``--set trial.steps=500`` or
``--set search.budget.trials=20``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from search_spaces import SPACES, Categorical, SearchSpace
from search_spaces.ready_spaces import around
from trainers.config import TrialConfig, first_learning_rate
from trainers.data.roots import image_counts
from trainers.errors import ConfigError, suggestion, validate
from trainers.evaluation.line import LEAST_IMAGES
from trainers.evaluation.metrics import ID_ACC, REPORTED, direction, metric_names
from trainers.overrides import LR_KEY, METHOD_KEY
from tuning.config.loading import read_layers, refuse_secrets
from tuning.config.recorded import drop_unknown
from tuning.config.schema import SearchFile

logger = logging.getLogger(__name__)

FIXED = ("steps", "epochs", "eval.every", "eval.rung_images")
"""Keys of the trial that are the same for all trials: pruning compares them at the same steps, and
on the same images."""


def load_config(
    source: str | Path, overrides: Iterable[str] = (), *, check: bool = True
) -> SearchFile:
    """Read, override, validate and check a configuration.

    Args:
        source: a YAML file, or the name of a ready one such as `quickstart`.
        overrides: ``key=value`` with dotted keys; values are YAML.
        check: also check that it can run on this machine, including data and model.

    Raises:
        ConfigError: with one line for each mistake: file or `--set`, key, value and problem.
    """
    return _validated(*read_layers(source, overrides), check_search if check else None)


def load_settings(source: str | Path, overrides: Iterable[str] = ()) -> SearchFile:
    """As `load_config`, checked without data and models, which may be elsewhere."""
    return _validated(*read_layers(source, overrides), check_settings)


def load_recorded(
    source: Path, overrides: Iterable[str] = (), *, check: bool = False
) -> tuple[SearchFile, dict[str, Any]]:
    """Read the `search.yaml` of a run folder, which may be of another version.

    Returns:
        Beside the configuration, the keys that this version does not know, with their values.
    """
    unknown: dict[str, Any] = {}

    def skip(values: dict[str, Any]) -> None:
        unknown.update(drop_unknown(SearchFile, values))

    layers = read_layers(source, overrides, skip)
    return _validated(*layers, check_search if check else None), unknown


def _validated(
    source_of: Callable[[str | None], str],
    values: dict[str, Any],
    check: Callable[[SearchFile], SearchFile] | None,
) -> SearchFile:
    file = validate(SearchFile, values, source_of)
    try:
        return file if check is None else check(file)
    except ConfigError as error:
        raise error.within(source_of(error.key)) from None


def load_trial(source: str | Path, overrides: Iterable[str] = ()) -> TrialConfig:
    """The `trial:` section alone, read and checked as by `load_config`."""
    source_of, values = read_layers(source, overrides)
    values.pop("search", None)
    trial = validate(SearchFile, values, source_of).trial
    from trainers.checks import check_trial  # with torch

    try:
        trial = with_first_rate(trial)
        check_trial(trial, [])
    except ConfigError as error:
        raise error.within(source_of(error.key)) from None
    return trial


def check_search(file: SearchFile) -> SearchFile:
    """Raise a ConfigError for everything that is known to fail before a worker starts.

    Returns:
        The configuration, with the first learning rate if none was given.
    """
    check_settings(file)
    file = file.model_copy(update={"trial": with_first_rate(file.trial)})
    # Commands that show a configuration or a run start without torch.
    from trainers.checks import check_trial

    _check_corners(file, partial(check_trial, checked=[]))
    return file


def with_first_rate(trial: TrialConfig) -> TrialConfig:
    """The trial with the rule's learning rate, unless one was given."""
    if "lr" in trial.optim.model_fields_set:
        return trial
    optim = trial.optim.model_copy(update={"lr": first_rate(trial)})
    return trial.model_copy(update={"optim": optim})


def first_rate(trial: TrialConfig) -> float:
    """`first_learning_rate` for the model and the steps of a trial. Needs no weights."""
    from trainers.models.clip import skeleton

    weights = cast("Any", skeleton(trial.model)).visual.parameters()
    return first_learning_rate(sum(weight.numel() for weight in weights), trial.steps)


def rate_line(file: SearchFile, *, by_rule: bool) -> str | None:
    """Why the search begins at its learning rate, and where it looks; None if both were given."""
    lr, parts = file.trial.optim.lr, file.spaces.values()
    is_around = any(part.parameters.get(LR_KEY) == around(lr) for part in parts)
    if not by_rule and not is_around:
        return None
    rule = f", the first learning rate of this model in {file.trial.steps} steps" if by_rule else ""
    searched = "; searched a decade to both sides" if is_around else ""
    return f"{LR_KEY} = {lr:g}{rule}{searched}"


def line_remark(trial: TrialConfig) -> str | None:
    """The domains with too few validation images to choose a point of the line; None without."""
    if trial.eval.line == "off" or not trial.method.has_line:
        return None
    few = {d: n for d, n in image_counts(trial.data, "val").items() if n < LEAST_IMAGES}
    if not few:
        return None
    counts = ", ".join(f"{domain} {images}" for domain, images in few.items())
    return f"fewer than {LEAST_IMAGES} validation images to choose a point of the line by: {counts}"


def _check_corners(file: SearchFile, check: Callable[[TrialConfig], object]) -> None:
    """Check trials that together reach every bound and every choice, and the first points."""
    for method, part in file.spaces.items():
        own = {} if method is None else {METHOD_KEY: method}
        for point in (*_corners(part), *part.initial_points):
            try:
                check(file.trial_config({**own, **point}))
            except ConfigError as error:
                raise _of_the_space(error, file, method, point) from None


def _corners(space: SearchSpace) -> list[dict[str, Any]]:
    """Points that together have every bound and every choice."""
    values = {
        key: list(p.choices) if isinstance(p, Categorical) else [p.low, p.high]
        for key, p in space.parameters.items()
    }
    number = max(map(len, values.values()), default=0)
    return [
        {key: of_key[min(index, len(of_key) - 1)] for key, of_key in values.items()}
        for index in range(number)
    ]


def _of_the_space(
    error: ConfigError, file: SearchFile, method: str | None, point: Mapping[str, Any]
) -> ConfigError:
    """The error of a trial, with the bound or the choices of the space that have caused it."""
    if method is not None and error.key == METHOD_KEY:
        return ConfigError(str(error), key="search.space.methods", hint=f"or remove {method!r}")
    if error.key is None or error.key not in point:
        return error
    parameter = file.spaces[method].parameters[error.key]
    hint = error.hint
    is_of_another = any(error.key in ready.parameters for ready in SPACES.values())
    if error.problem == "unknown key" and is_of_another:
        hint = "of another method: remove this parameter"
    field = "choices"
    if not isinstance(parameter, Categorical):
        field = "high" if point[error.key] == parameter.high else "low"
    key = f"{_parameter(file, method, error.key)}.{field}"
    return ConfigError(error.problem, key=key, value=error.value, hint=hint)


def _parameter(file: SearchFile, method: str | None, key: str) -> str:
    """Where a searched key stands in the configuration."""
    is_own = method is not None and key not in file.search.space.parameters
    section = f"search.space.by_method.{method}" if is_own else "search.space"
    return f"{section}.parameters.{key}"


def _check_shares(file: SearchFile) -> None:
    """Raise a ConfigError for batches of which the workers of a trial would get unequal shares."""
    workers, key = file.search.resources.workers, "optim.batch_size"
    try:
        file.trial.optim.share(workers)
    except ConfigError as error:
        where = f"trial.{error.key}"
        raise ConfigError(error.problem, key=where, value=error.value, hint=error.hint) from None
    for method, part in file.spaces.items():
        searched = part.parameters.get(key)
        sizes: Sequence[Any] = ()
        if isinstance(searched, Categorical):
            sizes = searched.choices
        elif searched is not None:
            sizes = searched.low, searched.step or 1
        if any(int(size) % workers for size in sizes):
            problem = f"{workers} workers cannot share all of them evenly"
            where = _parameter(file, method, key)
            hint = f"search multiples of {workers}: by `choices`, or by `low` and `step`"
            raise ConfigError(problem, key=where, value=str(searched), hint=hint)


def check_settings(file: SearchFile) -> SearchFile:
    """The part of `check_search` that needs neither data nor models, which may be elsewhere."""
    trial, search = file.trial, file.search
    searched = {key for part in file.spaces.values() for key in part.parameters}
    for key in searched.intersection(FIXED):
        raise ConfigError("cannot be searched", key=f"search.space.parameters.{key}")
    if "optim.batch_size" in searched and "epochs" in trial.model_fields_set:
        problem = "not the same for all trials: optim.batch_size is searched, their steps are not"
        hint = f"write trial.steps: {trial.steps}, or search no optim.batch_size"
        raise ConfigError(problem, key="trial.epochs", hint=hint)
    _check_objective(file)
    _check_corners(file, lambda trial: None)
    for name in search.references:
        file.reference_config(name)
    grace_steps = None if search.scheduler.name == "none" else search.scheduler.grace_steps
    if grace_steps is not None and grace_steps > trial.steps:
        problem, hint = f"more than trial.steps = {trial.steps}", "null is two thirds of the steps"
        raise ConfigError(problem, key="search.scheduler.grace_steps", value=grace_steps, hint=hint)
    if search.scheduler.name != "none" and trial.eval.every >= trial.steps:
        more = f"trial.eval.every = {trial.eval.every}: not below trial.steps = {trial.steps}"
        logger.warning("%s, so no trial can be stopped early", more)
    refuse_secrets(file.model_dump(mode="json"))  # one made in Python was not read from a file
    budget = search.budget
    methods = len(search.space.methods)
    if budget.gpu_hours is not None and not search.resources.gpus_per_worker:
        problem = "trials take no GPU (search.resources.gpus_per_worker = 0)"
        key, hint = "search.budget.gpu_hours", "use search.budget.hours"
        raise ConfigError(problem, key=key, value=budget.gpu_hours, hint=hint)
    _check_shares(file)
    if budget.trials < methods:
        problem = f"fewer than the {methods} of search.space.methods, which get as many trials each"
        raise ConfigError(problem, key="search.budget.trials", value=budget.trials)
    return file


def _check_objective(file: SearchFile) -> None:
    key = "search.objective.metric"
    has_gpus = file.search.resources.gpus_per_worker > 0
    known = [*metric_names(file.trial.data), *REPORTED]
    known = [name for name in known if has_gpus or not name.startswith("cost/gpu_")]
    for objective, configured in zip(file.objectives, file.search.objective, strict=True):
        if objective.metric not in known:
            # Not the other kind: whoever means OOD accuracy must not be led to ID accuracy.
            wants_id = objective.metric.startswith("id")
            alike = [name for name in known if name.startswith("id") == wants_id]
            if "/" not in objective.metric:  # an accuracy rather than a cost
                alike = [n for n in alike if n.startswith(("id_val/", "ood_val/", "val/"))]
            hint = suggestion(objective.metric, alike)
            if not file.trial.data.ood_domains and not wants_id:
                hint = f"without OOD domains, the objective can be {ID_ACC}"
            raise ConfigError("no trial reports it", key=key, value=objective.metric, hint=hint)
        better, where = direction(objective.metric), "search.objective.mode"
        if better is None and "mode" not in configured.model_fields_set:
            problem = f"not known whether more or less of {objective.metric} is better"
            raise ConfigError(problem, key=where, hint="write max or min")
        if better not in (None, objective.mode):
            problem = f"{'more' if better == 'max' else 'less'} of {objective.metric} is better"
            raise ConfigError(problem, key=where, value=objective.mode, hint="leave it out")
    if len({objective.metric for objective in file.objectives}) < len(file.objectives):
        raise ConfigError("a metric is given twice", key="search.objective")
    file.constraints()
    if len(file.objectives) > 1 and (name := file.search.scheduler.name) != "none":
        problem = "no trial can be stopped early with several objectives"
        raise ConfigError(problem, key="search.scheduler.name", value=name, hint="write none")
