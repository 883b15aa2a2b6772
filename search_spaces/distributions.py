"""The values that one hyperparameter may take: Float and Int ranges, Categorical choices."""

from __future__ import annotations

import math
import random
import re
from typing import Annotated, Any, Literal, TypeAlias

import optuna
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

# A value on the grid may miss it by a rounding error: 0.1 * 3 != 0.3.
_GRID_TOLERANCE = 1e-9


class Frozen(BaseModel):
    """Base of distributions and spaces: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Range(Frozen):
    """The rules that Float and Int share; both declare `low`, `high` and `step` in their type."""

    low: float
    """Smallest value, included."""
    high: float
    """Largest value, included."""
    log: bool = False
    """Sample on a logarithmic scale."""
    step: float | None = None
    """Distance of the grid points, counted from `low`; null is no grid."""

    @model_validator(mode="after")
    def _check_range(self) -> _Range:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be smaller than high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} must be greater than 0 on a log scale")
        if self.step is None:
            return self
        if self.log:
            raise ValueError(f"step={self.step} and log=true exclude each other")
        if self.step <= 0:
            raise ValueError(f"step={self.step} must be greater than 0")
        if not self._is_on_grid(self.high):
            last = self.low + math.floor((self.high - self.low) / self.step) * self.step
            raise ValueError(
                f"high={self.high} is not reached from low={self.low} in steps of {self.step}; "
                f"the last value is {last:g}"
            )
        return self

    def _is_on_grid(self, number: float) -> bool:
        if self.step is None:
            return True
        steps = (number - self.low) / self.step
        return abs(steps - round(steps)) <= _GRID_TOLERANCE * max(1.0, steps)

    def parse(self, value: Value) -> float:
        """The value as a number of this range; a string that spells a number is accepted.

        Raises:
            ValueError: not a number, or outside the range. The message starts with "is".
        """
        # YAML reads 1e-5 (no dot) as a string, so a string that spells a number is accepted.
        if isinstance(value, bool):
            raise ValueError("is not a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError("is not a number") from None
        if not math.isfinite(number):
            raise ValueError("is not a finite number")
        if not self.low <= number <= self.high:
            raise ValueError(f"is outside {self.low:g} .. {self.high:g}")
        if not self._is_on_grid(number):
            raise ValueError(f"is not {self.low:g} plus a multiple of {self.step:g}")
        return number

    def unit(self, value: float) -> float:
        """Where a value lies in the range on its scale, from 0 to 1; values outside are at a bound.

        A log scale is linear in the logarithm.
        """
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
        if self.step is not None:
            number = self.low + round((number - self.low) / self.step) * self.step
        return min(max(number, self.low), self.high)

    def near(self, center: float, width: float, rng: random.Random) -> float:
        """A random value around a centre, normally distributed on the scale of the range.

        The distribution is truncated: what is drawn outside of the range is drawn again.

        Args:
            width: standard deviation as a share of the range, 0 to 1.
        """
        middle = self.unit(center)
        position = middle + width * rng.gauss(0, 1)
        # From a generator of its own, so that values that are drawn later do not change. With a
        # width of 1, one of three draws is inside.
        again = random.Random(position)
        for _ in range(100):
            if 0 <= position <= 1:
                break
            position = middle + width * again.gauss(0, 1)
        return self.at(position)

    def __str__(self) -> str:
        """For people, such as `float 1e-06 .. 0.001, log scale`."""
        name = type(self).__name__.lower()
        text = f"{name} {format_value(self.low)} .. {format_value(self.high)}"
        if self.log:
            text += ", log scale"
        if self.step is not None:
            text += f", steps of {format_value(self.step)}"
        return text


class Float(_Range):
    """Real numbers from `low` to `high`, on a linear or log scale or on a grid of `step`."""

    type: Literal["float"] = "float"
    low: FiniteFloat
    high: FiniteFloat
    step: FiniteFloat | None = None

    def to_optuna(self) -> optuna.distributions.FloatDistribution:
        """The same distribution for Optuna."""
        return optuna.distributions.FloatDistribution(
            self.low, self.high, log=self.log, step=self.step
        )


class Int(_Range):
    """Integers from `low` to `high`, on a linear or log scale or on a grid of `step`."""

    type: Literal["int"] = "int"
    low: int
    high: int
    step: int | None = None

    def parse(self, value: Value) -> int:
        """As `Float.parse`, and whole; `3.0` is."""
        number = super().parse(value)
        if not number.is_integer():
            raise ValueError("is not a whole number")
        return int(number)

    def at(self, unit: float) -> int:
        """As `Float.at`, rounded."""
        return round(super().at(unit))

    def to_optuna(self) -> optuna.distributions.IntDistribution:
        """The same distribution for Optuna."""
        return optuna.distributions.IntDistribution(
            self.low, self.high, log=self.log, step=1 if self.step is None else self.step
        )


class Categorical(Frozen):
    """One of several values that have no order."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[StrictBool | StrictInt | FiniteFloat | StrictStr, ...]
    """The values: booleans, numbers or strings."""

    @field_validator("choices", mode="before")
    @classmethod
    def _parse_numbers(cls, choices: Any) -> Any:
        is_list = isinstance(choices, list | tuple)
        return tuple(map(_number_of, choices)) if is_list else choices

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: tuple[Value, ...]) -> tuple[Value, ...]:
        if not choices:
            raise ValueError("choices is empty; give at least one value")
        # Optuna compares choices with ==, so 1, 1.0 and true would be one choice.
        for index, choice in enumerate(choices):
            if choice in choices[:index]:
                raise ValueError(f"choices has {choice!r} twice")
        return choices

    def parse(self, value: Value) -> Value:
        """The choice that equals the value; `true` and 1 are different.

        Raises:
            ValueError: no choice equals it. The message starts with "is".
        """
        value = _number_of(value)
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise ValueError(f"is not one of {', '.join(map(repr, self.choices))}")

    def near(self, center: Value, width: float, rng: random.Random) -> Value:
        """The centre, or with a probability of `width` any of the choices."""
        return rng.choice(self.choices) if rng.random() < width else center

    def to_optuna(self) -> optuna.distributions.CategoricalDistribution:
        """The same distribution for Optuna."""
        return optuna.distributions.CategoricalDistribution(self.choices)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"


def _number_of(value: Any) -> Any:
    """The number for a text such as `1e-5`: YAML 1.1 reads numbers without a point as text."""
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if is_number else value


Distribution: TypeAlias = Annotated[Float | Int | Categorical, Field(discriminator="type")]
"""Any of the three; in YAML, `type` is float, int or categorical."""


def format_value(value: Value) -> str:
    """The value for people: floats with six significant digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)
