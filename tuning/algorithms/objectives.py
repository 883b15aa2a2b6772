"""What a search is after: objectives, and constraints that its choice must meet.

A constraint is one line of a configuration, `METRIC >= BOUND` or `METRIC <= BOUND`, where the bound
is a number, or one of these with a number added or taken away:

    zero_shot.METRIC    what the model had before any step:   id_val/acc >= zero_shot.id_val/acc
    best                the best that a trial has reached:    id_val/acc >= best - 0.5

The best rises as the search goes on. A choice is held to the last one; the sampler is told how a
trial stood when it ended.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["max", "min"]

_CONSTRAINT: Final = re.compile(r"(?P<metric>\S+)\s*(?P<relation>>=|<=)\s*(?P<bound>.+)")
_ANCHORED: Final = re.compile(
    r"(?P<anchor>best|zero_shot\.\S+?)\s*(?:(?P<sign>[+-])\s*(?P<offset>[\d.eE-]+))?"
)
_PERCENT: Final = ("acc", "ece", "ece_scaled")
"""Endings of metrics that lie between 0 and 100."""


@dataclass(frozen=True)
class Objective:
    """A metric of the validation splits, and which way is better."""

    metric: str
    mode: Mode = "max"

    def signed(self, value: float) -> float:
        """The value on a scale on which more is better."""
        return value if self.mode == "max" else -value


@dataclass(frozen=True)
class Constraint:
    """One line such as `id_val/acc >= best - 0.5`."""

    text: str
    metric: str
    relation: Literal[">=", "<="]
    anchor: str | None
    """`best`, `zero_shot.<metric>`, or None where the bound is a number."""
    offset: float

    @property
    def mode(self) -> Mode:
        """Which way the metric should go; `best` is the best of that."""
        return "max" if self.relation == ">=" else "min"

    def bound(self, zero_shot: Mapping[str, float], best: float | None) -> float | None:
        """The bound as a number; None where no trial has set a best yet.

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
        """By how much the value misses the bound, at most 0 where it does not; inf for no value."""
        if value is None or not math.isfinite(value):
            return math.inf
        if bound is None:
            return 0.0
        return bound - value if self.relation == ">=" else value - bound


def parse_constraint(text: str, known: Iterable[str]) -> Constraint:
    """The constraint of one line.

    Raises:
        ValueError: it cannot be read, or names a metric that is not among the `known`.
    """
    match = _CONSTRAINT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r}: write it as `METRIC >= BOUND` or `METRIC <= BOUND`")
    metric, relation, bound = match["metric"], match["relation"], match["bound"].strip()
    anchor, offset = _parse_bound(text, bound)
    names = set(known)
    for name in (metric, (anchor or "").removeprefix("zero_shot.")):
        if name not in names and name not in ("", "best"):
            raise ValueError(f"{text!r}: no trial reports {name!r}")
    return Constraint(text.strip(), metric, ">=" if relation == ">=" else "<=", anchor, offset)


def _parse_bound(text: str, bound: str) -> tuple[str | None, float]:
    try:
        number = float(bound)
    except ValueError:
        pass
    else:
        if not math.isfinite(number):
            raise ValueError(f"{text!r}: {bound} is no bound")
        return None, number
    match = _ANCHORED.fullmatch(bound)
    if match is None:
        raise ValueError(
            f"{text!r}: the bound {bound!r} is neither a number nor `best` or "
            "`zero_shot.METRIC`, with a number added or taken away"
        )
    try:
        offset = float((match["sign"] or "") + (match["offset"] or "0"))
    except ValueError:
        raise ValueError(f"{text!r}: {match['offset']!r} is not a number") from None
    return match["anchor"], offset


def check_constraints(
    constraints: Sequence[Constraint], zero_shot: Mapping[str, float] | None = None
) -> None:
    """Refuse what no trial can ever meet.

    Args:
        constraints: of one search.
        zero_shot: where it is known; without it, bounds that rest on it are not looked at.

    Raises:
        ValueError: a bound outside of what the metric can be, or two that exclude each other.
    """
    least: dict[str, tuple[float, str]] = {}
    most: dict[str, tuple[float, str]] = {}
    for constraint in constraints:
        offset = constraint.offset if constraint.relation == ">=" else -constraint.offset
        if constraint.anchor == "best" and offset > 0:
            raise ValueError(f"{constraint.text!r} cannot be met, not even by the best itself")
        metric, bound = constraint.metric, _fixed_bound(constraint, zero_shot)
        if bound is None:
            continue
        low, high = (0.0, 100.0) if metric.endswith(_PERCENT) else (-math.inf, math.inf)
        if bound > high if constraint.relation == ">=" else bound < low:
            raise ValueError(
                f"{constraint.text!r} cannot be met: {metric} lies between {low:g} and {high:g}, "
                f"and the bound is {bound:g}"
            )
        this = (bound, constraint.text)
        if constraint.relation == ">=":
            least[metric] = max(least.get(metric, this), this)
        else:
            most[metric] = min(most.get(metric, this), this)
    for metric in least.keys() & most.keys():
        if least[metric][0] > most[metric][0]:
            raise ValueError(f"{least[metric][1]!r} and {most[metric][1]!r} exclude each other")


def _fixed_bound(constraint: Constraint, zero_shot: Mapping[str, float] | None) -> float | None:
    if constraint.anchor == "best" or (constraint.anchor and zero_shot is None):
        return None
    return constraint.bound(zero_shot or {}, None)
