"""SearchSpace: the hyperparameters of a search, their distributions, and the first points to try.

    SearchSpace(
        parameters={"optim.lr": Float(low=1e-6, high=1e-4, log=True)},
        initial_points=[{"optim.lr": 1e-5}],
    )

A search that compares methods has a space for each, see `Spaces`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from optuna.distributions import BaseDistribution
from pydantic import Field, ValidationInfo, field_validator, model_validator

from search_spaces.distributions import Categorical, Distribution, Frozen, Value


class SearchSpace(Frozen):
    """The parameters of a search, or of one of the methods that it compares."""

    parameters: dict[str, Distribution] = Field(default_factory=dict)
    """Dotted key of the trial's configuration -> its distribution, in display order."""

    initial_points: list[dict[str, bool | int | float | str]] = Field(default_factory=list)
    """Complete points, tried before the sampler's own proposals."""

    @field_validator("initial_points")
    @classmethod
    def _have_the_types_and_order_of_the_space(
        cls, points: list[dict[str, Value]], info: ValidationInfo
    ) -> list[dict[str, Value]]:
        parameters: dict[str, Distribution] = info.data.get("parameters", {})
        parsed: list[dict[str, Value]] = []
        for point in points:
            if point.keys() != parameters.keys():
                needed = ", ".join(parameters)
                raise ValueError(f"a point has {', '.join(point) or 'no key'}; it needs {needed}")
            parsed.append({})
            for key, parameter in parameters.items():
                try:
                    parsed[-1][key] = parameter.parse(point[key])
                except ValueError as problem:
                    raise ValueError(f"{key}={point[key]!r} {problem}") from None
        return parsed

    @model_validator(mode="after")
    def _has_keys_of_parameters(self) -> SearchSpace:
        if not self.parameters:
            raise ValueError("the space is empty; give at least one parameter")
        for key in self.parameters:
            if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
                raise ValueError(f"{key!r} is not the key of a parameter, such as 'optim.lr'")
        return self

    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters as Optuna distributions, by dotted key."""
        return {key: parameter.to_optuna() for key, parameter in self.parameters.items()}

    def grid(self, points: int) -> dict[str, Sequence[Value]]:
        """The values of each parameter in a grid: so many of a number, or all choices."""
        units = np.linspace(0, 1, points)
        return {
            key: p.choices if isinstance(p, Categorical) else sorted({p.at(u) for u in units})
            for key, p in self.parameters.items()
        }


Spaces: TypeAlias = Mapping[str | None, SearchSpace]
"""The space of each method that a search compares, searched separately with as many trials; else
the one space, under None."""
