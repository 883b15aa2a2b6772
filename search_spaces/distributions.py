"""The values that one parameter may take: ranges of numbers and lists of choices."""

from __future__ import annotations

import math
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
    field_validator,
    model_validator,
)

Value: TypeAlias = bool | int | float | str
"""A value of one parameter, as it goes into a trial's configuration."""

# A value on the grid may miss it by a rounding error: 0.1 * 3 != 0.3.
_GRID_TOLERANCE = 1e-9


class Frozen(BaseModel):
    """What a space is made of: it never changes, and a misspelt field is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Range(Frozen):
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


class Categorical(Frozen):
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


def _describe_range(name: str, bounds: _Range) -> str:
    text = f"{name} {format_value(bounds.low)} .. {format_value(bounds.high)}"
    if bounds.log:
        text += ", log scale"
    if bounds.step is not None:
        text += f", steps of {format_value(bounds.step)}"
    return text


def format_value(value: Value) -> str:
    """A value for people: real numbers to six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)
