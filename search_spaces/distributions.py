"""The values that one hyperparameter may take: Float and Int ranges, Categorical choices."""

from __future__ import annotations

import math
import random
import warnings
from typing import Annotated, Any, Literal, TypeAlias

from optuna import distributions
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

Value: TypeAlias = bool | int | float | str
"""A value of one hyperparameter, as it goes into a trial's configuration."""


class Frozen(BaseModel):
    """Base of distributions and spaces: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Range(Frozen):
    """What Float and Int share."""

    low: FiniteFloat
    """Smallest value, included."""
    high: FiniteFloat
    """Largest value, included."""
    log: bool = False
    """Sample on a logarithmic scale."""
    step: FiniteFloat | None = None
    """Distance of the grid points, counted from `low`; null is no grid."""

    @model_validator(mode="after")
    def _check_range(self) -> _Range:
        if not self.low < self.high:  # Optuna accepts a range of one value
            raise ValueError(f"low={self.low} must be smaller than high={self.high}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the grid misses `high`: an error below
            last = self.to_optuna().high
        if last < self.high:
            raise ValueError(f"high={self.high} is no step of {self.step}: the last is {last:g}")
        return self

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def to_optuna(self) -> distributions.FloatDistribution | distributions.IntDistribution:
        """The same distribution for Optuna."""
        is_int = isinstance(self, Int)
        kind: Any = distributions.IntDistribution if is_int else distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log, step=self.step)

    def parse(self, value: Value) -> float:
        """The value as a number of this range.

        Raises:
            ValueError: not a number, or outside the range. The message starts with "is".
        """
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except OverflowError:  # of an integer
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("is not a finite number")
        if not self.low <= number <= self.high:
            raise ValueError(f"is outside {self.low:g} .. {self.high:g}")
        steps = (number - self.low) / (self.step or math.inf)
        if not math.isclose(steps, round(steps), rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(f"is not {self.low:g} plus a multiple of {self.step:g}")
        return number

    def unit(self, value: float) -> float:
        """Where a value lies on the scale of the range, 0 to 1; values outside are at a bound."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, unit: float) -> float:
        """The value at a position from 0 to 1, on the grid; the inverse of `unit`."""
        unit = min(max(unit, 0.0), 1.0)
        if self.log:
            number = float(self.low * (self.high / self.low) ** unit)
        else:
            number = self.low + unit * (self.high - self.low)
        if self.step:
            number = self.low + round((number - self.low) / self.step) * self.step
        return min(max(number, self.low), self.high)

    def near(self, center: float, width: float, rng: random.Random) -> float:
        """A random value around a centre, normal on the scale of the range and truncated to it.

        Args:
            width: standard deviation as a share of the range, 0 to 1.
        """
        middle = self.unit(center)
        position = middle + width * rng.gauss(0, 1)
        # Drawn again by a generator of its own, so that later draws of `rng` do not change. With a
        # width of 1, one of three draws is inside.
        again = random.Random(position)
        while not 0 <= position <= 1:
            position = middle + width * again.gauss(0, 1)
        return self.at(position)


class Float(_Range):
    """Real numbers from `low` to `high`, on a linear or log scale or on a grid of `step`."""

    type: Literal["float"] = "float"


class Int(_Range):
    """Integers from `low` to `high`, on a linear or log scale or on a grid of `step`."""

    type: Literal["int"] = "int"
    low: int
    high: int
    step: int = 1
    """Distance of the grid points, counted from `low`."""

    def parse(self, value: Value) -> int:
        """As `Float.parse`, and whole; `3.0` is."""
        return round(super().parse(value))

    def at(self, unit: float) -> int:
        """As `Float.at`, rounded."""
        return round(super().at(unit))


class Categorical(Frozen):
    """One of several values that have no order."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[StrictBool | StrictInt | FiniteFloat | StrictStr, ...] = Field(min_length=1)
    """The values: booleans, numbers or strings."""

    @field_validator("choices", mode="before")
    @classmethod
    def _differ(cls, choices: Any) -> Any:
        if not isinstance(choices, list | tuple):
            return choices
        # Optuna compares choices with ==, so 1, 1.0 and true would be one choice.
        if twice := [choice for index, choice in enumerate(choices) if choice in choices[:index]]:
            raise ValueError(f"choices has {twice[0]!r} twice")
        return tuple(choices)

    def __str__(self) -> str:
        return " or ".join(map(str, self.choices))

    def parse(self, value: Value) -> Value:
        """The choice that equals the value; `true` and 1 are different.

        Raises:
            ValueError: no choice equals it. The message starts with "is".
        """
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise ValueError(f"is not one of {', '.join(map(repr, self.choices))}")

    def near(self, center: Value, width: float, rng: random.Random) -> Value:
        """The centre, or with a probability of `width` any of the choices."""
        return rng.choice(self.choices) if rng.random() < width else center

    def to_optuna(self) -> distributions.CategoricalDistribution:
        """The same distribution for Optuna."""
        return distributions.CategoricalDistribution(self.choices)


Distribution: TypeAlias = Annotated[Float | Int | Categorical, Field(discriminator="type")]
"""Any of the three; in YAML, `type` is float, int or categorical."""
