"""The `search.space` section, and the space that it comes to."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

import search_spaces
from search_spaces import METHODS, Categorical, Distribution, SearchSpace
from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError, did_you_mean
from trainers.frozen import Frozen
from trainers.methods import Method
from tuning.runs.records import METHOD_KEY

ALL = "all"


class _Section(Frozen):
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Dotted key to `{type: float|int|categorical, low, high, log, step, choices}`; without a
    `type`, it changes these fields of the ready space's parameter."""
    initial_points: tuple[dict[str, Any], ...] | None = None
    """Tried first, in order; by default those of the ready space that lie inside, with the trial's
    own values for added parameters."""


class MethodSpaceConfig(_Section):
    """What is searched for one of several methods, where it differs from what is for all."""

    name: str | None = None
    """A ready space; null is the method's own."""


class SpaceConfig(_Section):
    """What is searched: a ready space, with parameters replaced or added, or one of its own.

    With `methods`, it is the ready space of each, side by side. `parameters` then are laid over
    every one that has the key, and one that none has is added to all; of `initial_points`, which
    differ from method to method, an empty list alone is for all.
    """

    name: str | None = "lipsum_ft"
    """A ready space of `search_spaces`; null starts from an empty one."""
    methods: tuple[str, ...] = ()
    """Compared with each other, each tuned by itself in as many trials; `all` is every method."""
    by_method: dict[str, MethodSpaceConfig] = Field(default_factory=dict)
    """For one of `methods` alone, over what is said for all."""

    @model_validator(mode="before")
    @classmethod
    def _methods_bring_their_spaces(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("methods"):
            return {"name": None, **values}
        return values

    @field_validator("methods", mode="before")
    @classmethod
    def _all_methods(cls, methods: Any) -> Any:
        listed = [methods] if isinstance(methods, str) else methods
        if isinstance(listed, list | tuple) and ALL in listed:
            if len(listed) > 1:
                raise ValueError(f"`{ALL}` stands alone")
            return tuple(METHODS)
        return listed

    @field_validator("methods")
    @classmethod
    def _methods_differ(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in methods if methods.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is named twice")
        return methods


def resolve_space(space: SpaceConfig, trial: TrialConfig) -> SearchSpace:
    """The space as the sampler needs it.

    Args:
        space: of the configuration.
        trial: its values complete the ready first points where the space has more parameters.

    Raises:
        ConfigError: an unknown ready space or method, or a parameter that makes no sense.
    """
    _refuse_method_name(space)
    if not space.methods:
        if space.by_method:
            raise ConfigError(
                "search.space.by_method: it says more of search.space.methods, which are not given"
            )
        ready = _load(space.name, "search.space.name") if space.name else None
        known = ready.parameters if ready else ()
        layers = {"search.space": space.parameters}
        return _varied(ready, layers, space.initial_points, trial, known)
    if space.name:
        raise ConfigError(
            f"search.space.name = {space.name!r}: with search.space.methods each method has its "
            "ready space; write null, or search.space.by_method.<method>.name for another"
        )
    if space.initial_points:
        raise ConfigError(
            "search.space.initial_points: methods differ in their parameters; write "
            "search.space.by_method.<method>.initial_points"
        )
    return SearchSpace(branches=_branches(space, trial))


def check_keys(config: SpaceConfig, space: SearchSpace, trial: TrialConfig) -> None:
    """Raise a `ConfigError` where what is searched does not go with the method.

    Args:
        config: what the space comes from.
        space: what it comes to.
        trial: names the method, where there are not several.
    """
    for given in config.by_method:
        if given not in config.methods:
            raise ConfigError(
                f"search.space.by_method.{given}: {given!r} is not among search.space.methods = "
                f"{list(config.methods)}"
            )
    for name, part in space.parts().items():
        own = {} if name is None else {METHOD_KEY: name}
        method = with_overrides(trial, own, "search.space.methods").method
        # Where a choice is searched, other settings may matter for one of its values alone.
        chosen = any(key.startswith("method.") and _varies(p) for key, p in part.parameters.items())
        for key, parameter in part.parameters.items():
            section, _, field = key.partition(".")
            where = _section_of(key, name, config)
            if section == "method" and field not in type(method).model_fields:
                raise ConfigError(f"{where}: {_no_setting(method, field, name, config)}")
            fixed = isinstance(parameter, Categorical) and not _varies(parameter)
            if section == "method" and field in method.idle and not fixed and not chosen:
                raise ConfigError(
                    f"{where}: it changes nothing with the method's other settings; write "
                    f"{{type: categorical, choices: [{getattr(method, field)}]}} in its place"
                )


def _varies(parameter: Distribution) -> bool:
    return isinstance(parameter, Categorical) and len(parameter.choices) > 1


def _section_of(key: str, name: str | None, config: SpaceConfig) -> str:
    """Where a parameter of a method's space stands, or may be written."""
    section = "search.space"
    if name is not None and key not in config.parameters:
        section += f".by_method.{name}"
    return f"{section}.parameters.{key}"


def _no_setting(method: Method, field: str, name: str | None, config: SpaceConfig) -> str:
    """What to do about a parameter that is no field of the method."""
    known = [known for known in type(method).model_fields if known != "name"]
    said = f"method.name = {method.name!r} has no {field!r}"
    if name is None and config.name and f"method.{field}" not in config.parameters:
        said += f", which search.space.name = {config.name!r} searches"
        return said + f"; write search.space.name = {method.name!r}"
    return said + did_you_mean(field, known)


def _refuse_method_name(space: SpaceConfig) -> None:
    sections = {"search.space": space.parameters}
    for method, own in space.by_method.items():
        sections[f"search.space.by_method.{method}"] = own.parameters
    for where, parameters in sections.items():
        if METHOD_KEY in parameters:
            given = parameters[METHOD_KEY].get("choices", ["ft", "lipsum_ft"])
            raise ConfigError(
                f"{where}.parameters.{METHOD_KEY}: methods have parameters of their own and are "
                f"tuned each by itself; write search.space.methods: {given}"
            )


def _branches(space: SpaceConfig, trial: TrialConfig) -> dict[str, SearchSpace]:
    """What is searched for each method."""
    for key, names in (("methods", space.methods), ("by_method", space.by_method)):
        for name in names:
            if name not in METHODS:
                raise ConfigError(
                    f"search.space.{key}: no method {name!r}{did_you_mean(name, [*METHODS, ALL])}"
                )
    of_method = {name: space.by_method.get(name, MethodSpaceConfig()) for name in space.methods}
    ready = {
        name: _load(own.name or name, f"search.space.by_method.{name}.name")
        for name, own in of_method.items()
    }
    known = dict.fromkeys(key for of_ready in ready.values() for key in of_ready.parameters)
    branches = {}
    for name, own in of_method.items():
        common = {
            key: given
            for key, given in space.parameters.items()
            if key in ready[name].parameters or key not in known
        }
        layers = {"search.space": common, f"search.space.by_method.{name}": own.parameters}
        points = space.initial_points if own.initial_points is None else own.initial_points
        of_trial = with_overrides(trial, {METHOD_KEY: name}, "search.space.methods")
        for key in own.parameters:
            section, _, field = key.partition(".")
            if section == "method" and field not in type(of_trial.method).model_fields:
                where = f"search.space.by_method.{name}.parameters.{key}"
                raise ConfigError(f"{where}: {_no_setting(of_trial.method, field, name, space)}")
        branches[name] = _varied(ready[name], layers, points, of_trial, known)
    return branches


def _load(name: str, key: str) -> SearchSpace:
    try:
        return search_spaces.load(name)
    except ValueError as error:
        raise ConfigError(f"{key} = {name!r}: {error}") from None


def _varied(
    ready: SearchSpace | None,
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    points: Sequence[Mapping[str, Any]] | None,
    trial: TrialConfig,
    known: Iterable[str],
) -> SearchSpace:
    """A ready space with parameters laid over it.

    Args:
        ready: None is an empty one.
        layers: section of the configuration -> its parameters, the later over the earlier.
        points: None is those of the ready space.
        trial: has values for parameters that these points lack.
        known: parameters that a misspelt one may be.
    """
    parameters = ready.model_dump()["parameters"] if ready else {}
    for given in layers.values():
        for key, fields in given.items():
            parameters[key] = fields if "type" in fields else {**parameters.get(key, {}), **fields}
    try:
        first = list(points or ())
        if ready and points is None:
            varied = SearchSpace.model_validate({"parameters": parameters})
            first = _completed(ready.initial_points, varied, trial)
        return SearchSpace.model_validate({"parameters": parameters, "initial_points": first})
    except ValidationError as error:
        raise ConfigError(_space_problem(error, known, layers)) from None


def _completed(
    points: Iterable[Mapping[str, Any]], space: SearchSpace, trial: TrialConfig
) -> list[Mapping[str, Any]]:
    """The points with the trial's own values for what they lack; those outside are left out."""
    own = trial.model_dump(mode="json")
    completed: list[Mapping[str, Any]] = []
    for point in points:
        with suppress(KeyError, TypeError, ValueError):
            lacking = space.parameters.keys() - point.keys()
            added = {key: reduce(operator.getitem, key.split("."), own) for key in lacking}
            values = {**point, **added}
            completed.append({key: p.parse(values[key]) for key, p in space.parameters.items()})
    return completed


def _space_problem(
    error: ValidationError, known: Iterable[str], layers: Mapping[str, Mapping[str, Any]]
) -> str:
    """The first mistake in a space, in one line."""
    first = error.errors(include_url=False)[0]
    # After a parameter's key pydantic names its type, which is no key of the user's.
    parts = [str(part) for index, part in enumerate(first["loc"]) if index != 2]
    section, *later = layers
    for name in later:
        if parts[0] == "initial_points" or (len(parts) > 1 and parts[1] in layers[name]):
            section = name
    where = ".".join([section, *parts])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_not_found":
        known = list(known)
        if parts[-1] in known:  # of another method
            of = section.rpartition(".")[2]
            message = f"the space of {of!r} has no such parameter, and a new one needs a `type`"
        else:
            message = "a parameter that is new to the space needs a `type`"
            message += did_you_mean(parts[-1], known)
    elif first["type"] == "union_tag_invalid":
        message = "its `type` is not one of float, int, categorical"
    elif first["type"] == "extra_forbidden":
        message = f"a parameter of this type has no such field (type: {first['loc'][2]})"
    return f"{where} = {first['input']!r}: {message}"
