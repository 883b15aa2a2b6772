"""The line between the zero-shot weights and the fine-tuned ones, and the choice of a point on it.

WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903)::

    theta_a = theta_0 + a (theta - theta_0)

over every weight, the head included. A trial measures a few points of the line on a sample of the
validation images. Between them, every metric that counts follows a smooth curve, and the point is
chosen that has the best objective within the constraints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np

from trainers.config_model import Frozen

POINTS: Final = (0.25, 0.5, 0.75)
"""What `line: auto` measures, beside both ends."""
GRID: Final = tuple(round(0.05 * number, 2) for number in range(1, 21))
"""The points to choose among. 0 is the zero-shot model, which needs no training."""
_DEGREE: Final = 2
"""Of the fitted polynomial. Higher ones follow the noise of the sample."""


class LineGoal(Frozen):
    """What a point of the line is chosen by: a search passes its objectives and constraints."""

    objectives: tuple[tuple[str, Literal["max", "min"]], ...]
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
        measured: a -> metrics; both ends, 0 and 1, are among them.

    Raises:
        KeyError: a point lacks a metric of the goal.
    """
    known = sorted(measured)
    curves: dict[str, np.ndarray] = {}
    for metric in goal.metrics:
        values = [measured[a][metric] for a in known]
        if not np.isfinite(values).all():
            return 1.0  # the end, whose metrics show it
        fitted = np.polynomial.Polynomial.fit(known, values, min(_DEGREE, len(known) - 1))
        # The zero-shot model first. Rounded, as equal values of a fit differ in their last digits.
        curves[metric] = fitted(np.array((0.0, *GRID))).round(9)
    missed = np.zeros(len(GRID))
    for metric, mode, anchor, offset in goal.bounds:
        sign, curve = _sign(mode), curves[metric][1:]
        bound = offset
        if anchor == "best":
            bound += sign * (sign * curve).max()
        elif anchor is not None:
            bound += curves[_anchored(anchor)][0]
        missed += np.maximum(0.0, sign * (bound - curve))
    distance = np.zeros(len(GRID))
    for metric, mode in goal.objectives:
        merit = _sign(mode) * curves[metric][1:]
        distance += ((merit.max() - merit) / (np.ptp(merit) or 1.0)) ** 2
    # Of equal points, the one with the most training.
    order = zip(missed.round(9).tolist(), distance.round(9).tolist(), GRID, strict=True)
    return min(order, key=lambda point: (point[0], point[1], -point[2]))[2]


def _sign(mode: str) -> float:
    return 1.0 if mode == "max" else -1.0


def _anchored(anchor: str) -> str:
    return anchor.removeprefix("zero_shot.")
