"""What a search may vary: named parameters, the range of each, and the points to try first.

A space is data. It knows dotted keys and numbers, not what they mean, so this module needs neither
torch nor ray and a space can be read, checked and printed anywhere.

    SearchSpace(
        parameters={"optim.lr": Float(low=1e-6, high=1e-4, log=True)},
        initial_points=[{"optim.lr": 1e-5}],
    )
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import optuna
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

Value: TypeAlias = bool | int | float | str
"""A value of one parameter, as it goes into a trial's configuration."""

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# A value on the grid may miss it by a rounding error: 0.1 * 3 != 0.3.
_GRID_TOLERANCE = 1e-9


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Range(_Frozen):
    """The rules that Float and Int share; each declares `low` and `high` in its own type."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @model_validator(mode="after")
    def _check_range(self) -> _Range:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be smaller than high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} must be greater than 0 on a log scale")
        if self.step is None:
            return self
        if self.log:
            raise ValueError(f"step={self.step} does not go with log=true; leave one of them out")
        if self.step <= 0:
            raise ValueError(f"step={self.step} must be greater than 0")
        steps = (self.high - self.low) / self.step
        if abs(steps - round(steps)) > _GRID_TOLERANCE * max(1.0, steps):
            last = self.low + math.floor(steps) * self.step
            raise ValueError(
                f"high={self.high} is not reached from low={self.low} in steps of {self.step}; "
                f"the last value is {last:g}"
            )
        return self

    def _problem_with(self, number: float) -> str | None:
        if not math.isfinite(number):
            return "is not a finite number"
        if not self.low <= number <= self.high:
            return f"is outside {self.low:g} .. {self.high:g}"
        if self.step is not None:
            steps = (number - self.low) / self.step
            if abs(steps - round(steps)) > _GRID_TOLERANCE * max(1.0, steps):
                return f"is not {self.low:g} plus a multiple of {self.step:g}"
        return None


class Float(_Range):
    """Real numbers from `low` to `high`, both included, on a log scale or on a grid of `step`."""

    type: Literal["float"] = "float"
    low: FiniteFloat
    high: FiniteFloat
    step: FiniteFloat | None = None

    def parse(self, value: Value) -> float:
        """The value as this parameter holds it.

        Raises:
            ValueError: it is no number, or not one of the range. The text starts with "is".
        """
        # YAML reads 1e-5 (no dot) as a string, so a string that spells a number is a number.
        if isinstance(value, bool):
            raise ValueError("is not a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError("is not a number") from None
        if problem := self._problem_with(number):
            raise ValueError(problem)
        return number

    def to_optuna(self) -> optuna.distributions.FloatDistribution:
        """The same range for Optuna."""
        return optuna.distributions.FloatDistribution(
            self.low, self.high, log=self.log, step=self.step
        )

    def __str__(self) -> str:
        return _describe_range("float", self)


class Int(_Range):
    """Whole numbers from `low` to `high`, both included, on a log scale or on a grid of `step`."""

    type: Literal["int"] = "int"
    low: int
    high: int
    step: int | None = None

    def parse(self, value: Value) -> int:
        """The value as this parameter holds it.

        Raises:
            ValueError: it is no whole number, or not one of the range. The text starts with "is".
        """
        if isinstance(value, bool):
            raise ValueError("is not a whole number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError("is not a whole number") from None
        if problem := self._problem_with(number):
            raise ValueError(problem)
        if not number.is_integer():
            raise ValueError("is not a whole number")
        return int(number)

    def to_optuna(self) -> optuna.distributions.IntDistribution:
        """The same range for Optuna."""
        return optuna.distributions.IntDistribution(
            self.low, self.high, log=self.log, step=1 if self.step is None else self.step
        )

    def __str__(self) -> str:
        return _describe_range("int", self)


class Categorical(_Frozen):
    """One of a few values that have no order."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[StrictBool | StrictInt | FiniteFloat | StrictStr, ...]

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: tuple[Value, ...]) -> tuple[Value, ...]:
        if not choices:
            raise ValueError("choices is empty; name at least one value")
        # Optuna compares with ==, so 1, 1.0 and true would be one choice to it.
        for index, choice in enumerate(choices):
            if choice in choices[:index]:
                raise ValueError(f"choices names {choice!r} twice")
        return choices

    def parse(self, value: Value) -> Value:
        """The choice that equals the value.

        Raises:
            ValueError: no choice does. The text starts with "is".
        """
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise ValueError(f"is not one of {', '.join(map(repr, self.choices))}")

    def to_optuna(self) -> optuna.distributions.CategoricalDistribution:
        """The same choices for Optuna."""
        return optuna.distributions.CategoricalDistribution(self.choices)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"


Distribution = Annotated[Float | Int | Categorical, Field(discriminator="type")]
"""What one parameter may be; `type` in a YAML file says which: float, int or categorical."""


class SearchSpace(_Frozen):
    """The parameters of a search, in the order in which people should read them."""

    parameters: dict[str, Distribution]
    """Dotted key of the trial's configuration -> the values that it may take."""

    initial_points: list[dict[str, bool | int | float | str]] = Field(default_factory=list)
    """Complete points, tried before the sampler proposes its own."""

    @field_validator("parameters")
    @classmethod
    def _check_keys(cls, parameters: dict[str, Distribution]) -> dict[str, Distribution]:
        if not parameters:
            raise ValueError("the space is empty; name at least one parameter")
        for key in parameters:
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a dotted key such as 'optim.lr'")
        return parameters

    @field_validator("initial_points")
    @classmethod
    def _check_points(
        cls, points: list[dict[str, Value]], info: ValidationInfo
    ) -> list[dict[str, Value]]:
        if "parameters" not in info.data:  # they are wrong themselves, which is said already
            return points
        parameters = info.data["parameters"]
        return [_parse_point(f"point {i}", point, parameters) for i, point in enumerate(points, 1)]

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The space for an Optuna sampler, by dotted key."""
        return {key: parameter.to_optuna() for key, parameter in self.parameters.items()}

    def canonical(self) -> str:
        """The parameters as one line of JSON, the same in whatever order they are written."""
        return json.dumps(self.model_dump(mode="json")["parameters"], sort_keys=True)

    def describe(self) -> list[str]:
        """One aligned line a parameter, then one line a first point."""
        width = max(map(len, self.parameters))
        lines = [f"{key:<{width}}  {parameter}" for key, parameter in self.parameters.items()]
        for number, point in enumerate(self.initial_points, 1):
            values = ", ".join(f"{key} {_format(value)}" for key, value in point.items())
            lines.append(f"{f'first point {number}':<{width}}  {values}")
        return lines


def _parse_point(
    name: str, point: Mapping[str, Value], parameters: Mapping[str, Distribution]
) -> dict[str, Value]:
    """The point in the order and types of the space, or a ValueError that names key and value."""
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


def _describe_range(name: str, bounds: _Range) -> str:
    text = f"{name} {_format(bounds.low)} .. {_format(bounds.high)}"
    if bounds.log:
        text += ", log scale"
    if bounds.step is not None:
        text += f", steps of {_format(bounds.step)}"
    return text


def _format(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
