"""Objectives of a search, and constraints that a chosen trial must meet.

A constraint is one line of a configuration, `METRIC >= BOUND` or `METRIC <= BOUND`. The bound is a
number, or one of these plus or minus a number:

    zero_shot.METRIC    the value of the model before any step:  id_val/acc >= zero_shot.id_val/acc
    best                the best value of a finished trial:      id_val/acc >= best - 0.5

The best changes during a search. A choice must meet the bound at the end. At each proposal, the
sampler gets the violations by the best of now.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from trainers.evaluation.metrics import MetricKey, in_percent

Mode: TypeAlias = Literal["max", "min"]

_NUMBER: Final = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CONSTRAINT: Final = re.compile(
    rf"(?P<metric>.+?)\s*(?P<relation>>=|<=)\s*(?:(?P<number>[+-]?{_NUMBER})"
    rf"|(?P<anchor>best|zero_shot\..+?)\s*(?:(?P<sign>[+-])\s*(?P<offset>{_NUMBER}))?)"
)
_TOLERANCE: Final = 1e-9
"""Far above the rounding of floating-point numbers, far below what one image changes."""


@dataclass(frozen=True)
class Objective:
    """A metric of the validation splits, and whether more or less is better."""

    metric: str
    mode: Mode = "max"

    def signed(self, value: float) -> float:
        """The value, signed so that more is better."""
        return value if self.mode == "max" else -value


def nll_of(objectives: Sequence[Objective]) -> Objective | None:
    """The NLL that belongs to a single accuracy, such as `val/mean_nll` to `val/mean_acc`.

    None for other objectives.
    """
    first = objectives[0]
    key = MetricKey.parse(first.metric)
    if len(objectives) > 1 or first.mode == "min" or key is None or key.measure != "acc":
        return None
    return Objective(str(replace(key, measure="nll")), "min")


@dataclass(frozen=True)
class Constraint:
    """One line such as `id_val/acc >= best - 0.5`."""

    text: str
    metric: str
    mode: Mode
    """The direction in which the metric is better: `max` for `>=`."""
    anchor: str | None
    """`best`, `zero_shot.<metric>`, or None if the bound is a number."""
    offset: float

    def bound(self, zero_shot: Mapping[str, float], best: float | None) -> float | None:
        """The bound as a number; None if it depends on a best and no trial has finished.

        Raises:
            ValueError: the zero-shot model has no such metric.
        """
        if self.anchor is None:
            return self.offset
        if self.anchor == "best":
            return None if best is None else best + self.offset
        name = self.anchor.removeprefix("zero_shot.")
        if name not in zero_shot:
            raise ValueError(f"{self.text!r}: the zero-shot model has no metric {name!r}")
        return zero_shot[name] + self.offset

    def violation(self, value: float | None, bound: float | None) -> float:
        """How far the value is from the bound, at most 0 if it meets it; inf without a value.

        An amount below `_TOLERANCE` is 0: `70.4 - 0.3` is a little more than 70.1 in binary.
        """
        if value is None or not math.isfinite(value):
            return math.inf
        if bound is None:
            return 0.0
        amount = bound - value if self.mode == "max" else value - bound
        return 0.0 if abs(amount) < _TOLERANCE else amount


def parse_constraint(text: str, known: Iterable[str]) -> Constraint:
    """Parse one line.

    Raises:
        ValueError: it cannot be parsed, or names a metric that is not among the `known`.
    """
    match = _CONSTRAINT.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r}: write it as `METRIC >= BOUND` or `METRIC <= BOUND`; the bound is a number, "
            "or `best` or `zero_shot.METRIC`, with a number added or taken away"
        )
    metric = match["metric"]
    anchor = match["anchor"]
    names = set(known)
    for name in (metric, (anchor or "").removeprefix("zero_shot.")):
        if name not in names and name not in ("", "best"):
            raise ValueError(f"{text!r}: no trial reports {name!r}")
    offset = float(match["number"] or (match["sign"] or "") + (match["offset"] or "0"))
    if not math.isfinite(offset):
        raise ValueError(f"{text!r}: the number is too large")
    mode: Mode = "max" if match["relation"] == ">=" else "min"
    return Constraint(text.strip(), metric, mode, anchor, offset)


def check_constraints(
    constraints: Sequence[Constraint], zero_shot: Mapping[str, float] | None = None
) -> None:
    """Check that the constraints of a search can be met.

    Args:
        zero_shot: metrics of the zero-shot model. Without them, bounds that use them are not
            checked.

    Raises:
        ValueError: a bound is outside of the metric's range, or two exclude each other.
    """
    bounds: dict[Mode, list[tuple[Constraint, float]]] = {"max": [], "min": []}
    for constraint in constraints:
        offset = constraint.offset if constraint.mode == "max" else -constraint.offset
        if constraint.anchor == "best" and offset > 0:
            raise ValueError(f"{constraint.text!r} cannot be met, not even by the best itself")
        if constraint.anchor == "best" or (constraint.anchor and zero_shot is None):
            continue  # the bound is not known yet
        metric, bound = constraint.metric, constraint.bound(zero_shot or {}, None)
        assert bound is not None
        low, high = (0.0, 100.0) if in_percent(metric) else (-math.inf, math.inf)
        if bound > high if constraint.mode == "max" else bound < low:
            raise ValueError(
                f"{constraint.text!r} cannot be met: {metric} lies between {low:g} and {high:g}, "
                f"and the bound is {bound:g}"
            )
        bounds[constraint.mode].append((constraint, bound))
    for (lower, low), (upper, high) in itertools.product(*bounds.values()):
        if lower.metric == upper.metric and low > high:
            raise ValueError(f"{lower.text!r} and {upper.text!r} exclude each other")
