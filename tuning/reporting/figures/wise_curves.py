"""The figure of WiSE-FT's curves: a line a trial, from the zero-shot to the fine-tuned model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tuning.reporting.figures.id_vs_ood import draw_frame, label
from tuning.reporting.tables.wise import wise_curve
from tuning.runs.records import ID_ACC, OOD_MEAN_ACC, SearchRecord, TrialRecord
from tuning.selection.rules import ranked

WISE_FIGURE = "wise_curves.png"
HIGHLIGHTED = 5
"""Trials that have a colour, best first; the others are thin and grey."""

# Okabe-Ito without its yellow, which nobody sees on white.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
_INK, _SOFT_INK, _PALE = "#22262B", "#5B616B", "#B9BEC6"
_MARKS = {0.5: ("D", "alpha = 0.5"), 1.0: ("o", "alpha = 1")}
_PLOT_BOX = (0.095, 0.175, 0.66, 0.70)


def wise_figure(search: SearchRecord, records: Sequence[TrialRecord], path: Path) -> Path | None:
    """A PNG of ID against mean OOD accuracy along the curves; up and to the right is better.

    The best trials by the objective have a colour each, plain fine-tuning beside the search is
    black and dashed.

    Returns:
        The path, whose folder is made if need be; None where no trial has a curve.
    """
    curves = {r.trial_id: line for r in records if len(line := _line(r)) > 1}
    if not curves:
        return None
    drawn = Figure(figsize=(8.6, 6.2), dpi=150, facecolor="white")
    FigureCanvasAgg(drawn)
    axes = drawn.add_axes(_PLOT_BOX)
    draw_frame(axes, search, "WiSE-FT: between the zero-shot weights and the fine-tuned ones")
    axes.margins(0.07)
    shown = [r for r in ranked(search, records) if r.trial_id in curves]
    references = [r for r in records if r.kind == "reference" and r.trial_id in curves]
    for record in shown[HIGHLIGHTED:]:
        _draw(axes, curves[record.trial_id], _PALE, width=0.8, order=2)
    for record in references:
        _draw(axes, curves[record.trial_id], _INK, style=(0, (4, 2)), order=3)
    for record, colour in reversed(list(zip(shown, _COLOURS, strict=False))):
        _draw(axes, curves[record.trial_id], colour, width=1.9, order=4)
    _draw_zero_shot(axes, search)
    axes.legend(
        handles=_legend(search, shown, references),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.01),
        frameon=False,
        fontsize=9,
        labelspacing=0.65,
    )
    drawn.text(_PLOT_BOX[0], 0.942, search.name, fontsize=15, fontweight="bold", color=_INK)
    note = f"Colours: the best {len(shown[:HIGHLIGHTED])}. {search.selection} Validation accuracy."
    note = "\n".join(textwrap.wrap(note, 122))
    drawn.text(_PLOT_BOX[0], 0.085, note, fontsize=8.5, color=_SOFT_INK, va="top", linespacing=1.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    return path


def _line(record: TrialRecord) -> list[tuple[float, float, float]]:
    """Alpha, ID and OOD accuracy of the points that have both."""
    return [
        (point.alpha, point.id_acc, point.ood_mean_acc)
        for point in wise_curve(record)
        if point.id_acc is not None and point.ood_mean_acc is not None
    ]


def _draw(
    axes: Axes,
    line: Sequence[tuple[float, float, float]],
    colour: str,
    *,
    width: float = 1.3,
    style: str | tuple[int, tuple[int, int]] = "-",
    order: int,
) -> None:
    xs, ys = [x for _, x, _ in line], [y for _, _, y in line]
    axes.plot(xs, ys, color=colour, linewidth=width, linestyle=style, zorder=order)
    for alpha, x, y in line:
        if alpha in _MARKS:
            face = colour if alpha == 1 else "white"
            marker, size = _MARKS[alpha][0], 14 * width + 8
            axes.scatter(
                x, y, s=size, marker=marker, facecolor=face, edgecolor=colour, zorder=order + 0.5
            )


def _draw_zero_shot(axes: Axes, search: SearchRecord) -> None:
    """Where all curves begin."""
    x, y = search.zero_shot.get(ID_ACC), search.zero_shot.get(OOD_MEAN_ACC)
    if x is not None and y is not None:
        axes.scatter(x, y, s=230, marker="*", color=_INK, edgecolor="white", zorder=6)
        label(axes, "zero-shot (alpha = 0)", (x, y), offset=(-6, -20))


def _legend(
    search: SearchRecord, shown: Sequence[TrialRecord], references: Sequence[TrialRecord]
) -> list[Artist]:
    """The coloured trials, best first, with their methods; the others; the marks."""

    def line(name: str, colour: str, style: Literal["-", "--"] = "-") -> Artist:
        return Line2D([], [], color=colour, linestyle=style, linewidth=1.6, label=name)

    handles = [
        line(f"{record.trial_id}  {search.method(record) or ''}".rstrip(), colour)
        for record, colour in zip(shown, _COLOURS, strict=False)
    ]
    if len(shown) > HIGHLIGHTED:
        handles.append(line(f"{len(shown) - HIGHLIGHTED} other trials", _PALE))
    handles += [line(f"{record.trial_id}, reference", _INK, "--") for record in references]
    for alpha, (marker, name) in _MARKS.items():
        face = _SOFT_INK if alpha == 1 else "white"
        mark = Line2D([], [], linestyle="", marker=marker, markersize=6, label=name)
        mark.set(color=_SOFT_INK, markerfacecolor=face)
        handles.append(mark)
    return handles
