"""The `search.space` section, and the space that it comes to."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import reduce
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import search_spaces
from search_spaces import SearchSpace
from trainers.config import TrialConfig
from trainers.errors import ConfigError, did_you_mean


class SpaceConfig(BaseModel):
    """What is searched: a ready space, with parameters replaced or added, or one of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str | None = "lipsum_ft"
    """A ready space of `search_spaces`; null starts from an empty one."""
    parameters: dict[str, dict[str, Any]] = {}
    """Dotted key to `{type: float|int|categorical, low, high, log, step, choices}`; without a
    `type`, it changes these fields of the ready space's parameter."""
    initial_points: tuple[dict[str, Any], ...] | None = None
    """Tried first, in order; by default those of the ready space that lie inside, with the trial's
    own values for added parameters."""


def resolve_space(space: SpaceConfig, trial: TrialConfig) -> SearchSpace:
    """The space as the sampler needs it.

    Args:
        space: of the configuration.
        trial: its values complete the ready first points where the space has more parameters.

    Raises:
        ConfigError: an unknown ready space, or a parameter that makes no sense.
    """
    try:
        ready = search_spaces.load(space.name) if space.name else None
    except ValueError as error:
        raise ConfigError(f"search.space.name = {space.name!r}: {error}") from None
    parameters = ready.model_dump()["parameters"] if ready else {}
    for key, given in space.parameters.items():
        parameters[key] = given if "type" in given else {**parameters.get(key, {}), **given}
    try:
        points = list(space.initial_points or ())
        if ready and space.initial_points is None:
            varied = SearchSpace.model_validate({"parameters": parameters})
            points = _completed(ready.initial_points, varied, trial)
        return SearchSpace.model_validate({"parameters": parameters, "initial_points": points})
    except ValidationError as error:
        raise ConfigError(_space_problem(error, ready)) from None


def _completed(
    points: Iterable[Mapping[str, Any]], space: SearchSpace, trial: TrialConfig
) -> list[dict[str, Any]]:
    """The points with the trial's own values for what they lack; those outside are left out."""
    own = trial.model_dump(mode="json")
    completed = []
    for point in points:
        with suppress(KeyError, TypeError, ValueError):
            lacking = space.parameters.keys() - point.keys()
            added = {key: reduce(operator.getitem, key.split("."), own) for key in lacking}
            values = {**point, **added}
            completed.append({key: p.parse(values[key]) for key, p in space.parameters.items()})
    return completed


def _space_problem(error: ValidationError, ready: SearchSpace | None) -> str:
    """The first mistake in a space, in one line."""
    first = error.errors(include_url=False)[0]
    # After a parameter's key pydantic names its type, which is no key of the user's.
    parts = [str(part) for index, part in enumerate(first["loc"]) if index != 2]
    where = ".".join(["search.space", *parts])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_not_found":
        known = did_you_mean(parts[-1], ready.parameters) if ready else ""
        message = f"a parameter that is new to the space needs a `type`{known}"
    elif first["type"] == "union_tag_invalid":
        message = "its `type` is not one of float, int, categorical"
    elif first["type"] == "extra_forbidden":
        message = f"a parameter of this type has no such field (type: {first['loc'][2]})"
    return f"{where} = {first['input']!r}: {message}"
