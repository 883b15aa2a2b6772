"""SearchSpace: the hyperparameters of a search, their distributions, and the first points to try.

    SearchSpace(
        parameters={"optim.lr": Float(low=1e-6, high=1e-4, log=True)},
        initial_points=[{"optim.lr": 1e-5}],
    )

A search that compares methods has one branch for each method, and each branch is a space:

    SearchSpace(branches={"ft": load("ft"), "kd": load("kd")})
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import optuna
from pydantic import Field, ValidationInfo, field_validator

from search_spaces.distributions import Distribution, Frozen, Value, format_value

BRANCH_KEY = "method.name"
"""Configuration key whose values are the names of the branches."""

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class SearchSpace(Frozen):
    """Either parameters, in display order, or branches."""

    branches: dict[str, SearchSpace] = Field(default_factory=dict)
    """Value of BRANCH_KEY -> the space searched for it. Branches are searched separately, with the
    same number of trials each. A branch has parameters, and BRANCH_KEY is not one of them."""

    parameters: dict[str, Distribution] = Field(default_factory=dict, validate_default=True)
    """Dotted key of the trial's configuration -> its distribution."""

    initial_points: list[dict[str, bool | int | float | str]] = Field(default_factory=list)
    """Complete points, tried before the sampler's own proposals."""

    @field_validator("branches")
    @classmethod
    def _check_branches(cls, branches: dict[str, SearchSpace]) -> dict[str, SearchSpace]:
        for name, branch in branches.items():
            if branch.branches:
                raise ValueError(f"branch {name!r} has branches of its own")
        return branches

    @field_validator("parameters")
    @classmethod
    def _check_keys(
        cls, parameters: dict[str, Distribution], info: ValidationInfo
    ) -> dict[str, Distribution]:
        if not parameters and info.data.get("branches") == {}:
            raise ValueError("the space is empty; give at least one parameter")
        if parameters and info.data.get("branches"):
            raise ValueError("a space with branches cannot have parameters of its own")
        for key in parameters:
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a dotted key such as 'optim.lr'")
            if key == BRANCH_KEY:
                raise ValueError(f"{key!r} cannot be a parameter; make each of its values a branch")
        return parameters

    @field_validator("initial_points")
    @classmethod
    def _check_points(
        cls, points: list[dict[str, Value]], info: ValidationInfo
    ) -> list[dict[str, Value]]:
        if "parameters" not in info.data:  # invalid themselves, and reported already
            return points
        parameters = info.data["parameters"]
        return [_parse_point(f"point {i}", point, parameters) for i, point in enumerate(points, 1)]

    def parts(self) -> dict[str | None, SearchSpace]:
        """The spaces that are searched separately: the branches, or this space under None."""
        if not self.branches:
            return {None: self}
        return dict(self.branches.items())

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The parameters as Optuna distributions, by dotted key."""
        return {key: parameter.to_optuna() for key, parameter in self.parameters.items()}

    def canonical(self) -> str:
        """The parameters as one line of JSON with sorted keys, for comparing spaces."""
        if self.branches:
            branches = {name: json.loads(b.canonical()) for name, b in self.branches.items()}
            return json.dumps({"branches": branches}, sort_keys=True)
        return json.dumps(self.model_dump(mode="json")["parameters"], sort_keys=True)

    def describe(self) -> list[str]:
        """One aligned line for each parameter and first point, for each branch in turn."""
        if self.branches:
            return [
                line
                for name, branch in self.branches.items()
                for line in (name, *(f"  {line}" for line in branch.describe()))
            ]
        width = max(map(len, self.parameters))
        lines = [f"{key:<{width}}  {parameter}" for key, parameter in self.parameters.items()]
        for number, point in enumerate(self.initial_points, 1):
            values = ", ".join(f"{key} {format_value(value)}" for key, value in point.items())
            lines.append(f"{f'first point {number}':<{width}}  {values}")
        return lines


def _parse_point(
    name: str, point: Mapping[str, Value], parameters: Mapping[str, Distribution]
) -> dict[str, Value]:
    """The point with the space's types and key order, or a ValueError with key and value."""
    if unknown := [key for key in point if key not in parameters]:
        raise ValueError(
            f"{name} sets {', '.join(unknown)}, which the space does not have; "
            f"it has {', '.join(parameters)}"
        )
    if missing := [key for key in parameters if key not in point]:
        raise ValueError(f"{name} lacks {', '.join(missing)}; a first point must be complete")
    parsed: dict[str, Value] = {}
    for key, parameter in parameters.items():
        try:
            parsed[key] = parameter.parse(point[key])
        except ValueError as problem:
            raise ValueError(f"{name}: {key}={point[key]!r} {problem}") from None
    return parsed
