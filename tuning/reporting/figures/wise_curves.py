"""Figure of WiSE-FT's curves: a line per trial from the zero-shot to the evaluated weights.

The evaluated weights are those of the trial's other metrics: the fine-tuned ones, or what the
method makes of them, such as the average of `ema` and the point that `wise_ft` chose.

A trial with `trial.eval.wise_alphas` measures these points once, after its last step, and reports
them as `wise/<alpha>/id_val/acc` and `wise/<alpha>/ood_val/mean_acc`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.reporting.figures.frame import (
    BLUE,
    GREEN,
    INK,
    SOFT_INK,
    VERMILION,
    draw_zero_shot,
    legend_beside,
    legend_mark,
    new_figure,
)
from tuning.reporting.formatting import untuned_label
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.ranking import ranked

WISE_FIGURE = "wise_curves.png"
HIGHLIGHTED = 5
"""Number of trials with a colour, best first; the others are thin and grey."""

# Okabe-Ito without its yellow, which is invisible on white.
_COLOURS = (VERMILION, BLUE, GREEN, "#CC79A7", "#E69F00")
_PALE = "#B9BEC6"
_MARKS = {0.5: ("D", "alpha = 0.5"), 1.0: ("o", "alpha = 1")}

_ALPHA: Final = re.compile(rf"wise/([^/]+)/{ID_ACC}")
Curve: TypeAlias = list[tuple[float, float, float]]
"""Alpha, ID accuracy and mean OOD accuracy, both in percent, of the points that have both."""


def wise_curve(record: TrialRecord) -> Curve:
    """The points that a trial reported, ordered by alpha; empty if there are none."""
    points = []
    for name in record.metrics:
        if match := _ALPHA.fullmatch(name):
            id_acc = record.last(name)
            ood_acc = record.last(f"wise/{match[1]}/{OOD_MEAN_ACC}")
            if id_acc is not None and ood_acc is not None:
                points.append((float(match[1]), id_acc, ood_acc))
    return sorted(points)


def draw(search: SearchRecord, records: Sequence[TrialRecord]) -> tuple[Figure, str] | None:
    """ID against mean OOD accuracy along the curves, and a note; None if no trial has a curve.

    Up and to the right is better. Each of the best trials has a colour; plain fine-tuning is black
    and dashed.
    """
    curves = {record.trial_id: wise_curve(record) for record in records}
    lines = {trial_id: curve for trial_id, curve in curves.items() if len(curve) > 1}
    if not lines:
        return None
    subtitle = "WiSE-FT: between the zero-shot weights and those that a trial evaluates"
    drawn, axes = new_figure(search, subtitle, 0.66)
    axes.margins(0.07)
    shown = [record for record in ranked(search, records) if record.trial_id in lines]
    references = [r for r in records if r.kind == "reference" and r.trial_id in lines]
    for record in shown[HIGHLIGHTED:]:
        _draw(axes, lines[record.trial_id], _PALE, width=0.8, order=2)
    for record in references:
        _draw(axes, lines[record.trial_id], INK, style="--", order=3)
    for record, colour in reversed(list(zip(shown, _COLOURS, strict=False))):
        _draw(axes, lines[record.trial_id], colour, width=1.9, order=4)
    draw_zero_shot(axes, search.zero_shot, "zero-shot (alpha = 0)", offset=(-6, -11), order=6)

    handles = [
        _legend_line(f"{record.trial_id}  {search.method(record) or ''}".rstrip(), colour)
        for record, colour in zip(shown, _COLOURS, strict=False)
    ]
    if len(shown) > HIGHLIGHTED:
        handles.append(_legend_line(f"{len(shown) - HIGHLIGHTED} other trials", _PALE))
    handles += [_legend_line(untuned_label(search, "\n"), INK, "--") for _ in references]
    for alpha, (marker, name) in _MARKS.items():
        handles.append(legend_mark(name, marker, SOFT_INK, SOFT_INK if alpha == 1 else "white", 6))
    legend_beside(axes, handles)
    best = f"Colours: the best {len(shown[:HIGHLIGHTED])}."
    return drawn, f"{best} {search.selection} Validation accuracy."


def _draw(
    axes: Axes,
    line: Curve,
    colour: str,
    *,
    width: float = 1.3,
    style: Literal["-", "--"] = "-",
    order: int,
) -> None:
    xs, ys = [x for _, x, _ in line], [y for _, _, y in line]
    axes.plot(xs, ys, color=colour, linewidth=width, linestyle=style, zorder=order)
    for alpha, x, y in line:
        if alpha in _MARKS:
            axes.scatter(
                x,
                y,
                s=14 * width + 8,
                marker=_MARKS[alpha][0],
                facecolor=colour if alpha == 1 else "white",
                edgecolor=colour,
                zorder=order + 0.5,
            )


def _legend_line(name: str, colour: str, style: Literal["-", "--"] = "-") -> Line2D:
    return Line2D([], [], color=colour, linestyle=style, linewidth=1.6, label=name)
