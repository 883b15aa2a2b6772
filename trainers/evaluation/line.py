"""The line between the zero-shot weights and the fine-tuned ones, and the choice of a point on it.

WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903)::

    theta_a = theta_0 + a (theta - theta_0)

over every weight, the head included. A trial measures a few points of the line on a sample of the
validation images. Between them, every metric that counts follows a smooth curve. Around the best
measured point, the point is chosen that has the best objective within the constraints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from pydantic import Field

from trainers.config_model import Frozen

POINTS: Final = (0.25, 0.5, 0.75)
"""What `line: auto` measures, beside both ends."""
LEAST_IMAGES: Final = 100
"""Of a domain, to choose a point by: on fewer, differences between points are mostly noise."""
GRID: Final = tuple(round(0.05 * number, 2) for number in range(1, 21))
"""The points to choose among. 0 is the zero-shot model, which needs no training."""
_DEGREE: Final = 2
"""Of the fitted polynomial. Higher ones follow the noise of the sample."""


class LineGoal(Frozen):
    """What a point of the line is chosen by: a search passes its objectives and constraints."""

    objectives: tuple[tuple[str, Literal["max", "min"]], ...] = Field(min_length=1)
    """Metrics of the validation splits, each with the direction in which it is better."""
    bounds: tuple[tuple[str, Literal["max", "min"], str | None, float], ...] = ()
    """Metric, direction, anchor and offset of each constraint. The anchor is `zero_shot.METRIC`,
    `best`, for which the best of the line stands, or None if the offset is the bound."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that are needed, each once."""
        named = [metric for metric, _ in self.objectives]
        for metric, _, anchor, _ in self.bounds:
            named += [metric, *([] if anchor in (None, "best") else [_anchored(anchor)])]
        return tuple(dict.fromkeys(named))


def choose_point(measured: Mapping[float, Mapping[str, float]], goal: LineGoal) -> float:
    """The point of `GRID` with the best objective among those that violate the bounds least.

    Several objectives are compared by their distance to the best of each, scaled to its range on
    the line.

    Args:
        measured: a -> metrics; both ends, 0 (the zero-shot model) and 1, are among them.

    Raises:
        KeyError: a point lacks a metric of the goal.
    """
    known = sorted(measured)
    zero_shot, trained = measured[0.0], known[1:]
    at_known: dict[str, np.ndarray] = {}
    at_grid: dict[str, np.ndarray] = {}
    for metric in goal.metrics:
        values = np.array([measured[a][metric] for a in known])
        if not np.isfinite(values).all():
            return 1.0  # the end, whose metrics show it
        fitted = np.polynomial.Polynomial.fit(known, values, min(_DEGREE, len(known) - 1))
        at_known[metric] = values[1:]
        # Rounded, as equal values of a fit differ in their last digits.
        at_grid[metric] = fitted(np.array(GRID)).round(9)
    # No curve is followed past the neighbours of the best measured point. The NLL may explode on a
    # line, and a parabola through it then has its best where the measured values are bad.
    best = _best(trained, at_known, zero_shot, goal, trained)
    at = known.index(best)
    near = [a for a in GRID if known[at - 1] <= a <= known[min(at + 1, len(known) - 1)]]
    return _best(GRID, at_grid, zero_shot, goal, near) if near else best


def _best(
    points: Sequence[float],
    curves: Mapping[str, np.ndarray],
    zero_shot: Mapping[str, float],
    goal: LineGoal,
    allowed: Sequence[float],
) -> float:
    """The best of the allowed points of a curve, by the bounds and then by the objectives."""
    missed, distance = np.zeros(len(points)), np.zeros(len(points))
    for metric, mode, anchor, offset in goal.bounds:
        sign, curve = _sign(mode), curves[metric]
        bound = offset
        if anchor == "best":
            bound += sign * (sign * curve).max()
        elif anchor is not None:
            bound += zero_shot[_anchored(anchor)]
        missed += np.maximum(0.0, sign * (bound - curve))
    for metric, mode in goal.objectives:
        merit = _sign(mode) * curves[metric]
        distance += ((merit.max() - merit) / (np.ptp(merit) or 1.0)) ** 2
    # Of equal points, the one with the most training.
    order = zip(missed.round(9).tolist(), distance.round(9).tolist(), points, strict=True)
    return min((p for p in order if p[2] in allowed), key=lambda p: (p[0], p[1], -p[2]))[2]


def _sign(mode: str) -> float:
    return 1.0 if mode == "max" else -1.0


def _anchored(anchor: str) -> str:
    return anchor.removeprefix("zero_shot.")
