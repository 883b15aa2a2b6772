"""The frame that all figures share: axes of ID against OOD accuracy, title, note, legend.

Figures are made without pyplot: no global state changes, no display is needed, and a driver may
draw from any thread.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.records import ZERO_SHOT, SearchRecord, TrialRecord

INK: Final = "#22262B"
SOFT_INK: Final = "#5B616B"
GREY: Final = "#8A8F98"
# Okabe-Ito: distinct with every common colour blindness.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
_LEFT: Final = 0.095


class ReportFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        return png_of(self)


def png_of(drawn: Figure) -> bytes:
    """A figure as a PNG for the screen."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=96)
    return file.getvalue()


def new_figure(search: SearchRecord, subtitle: str, width: float) -> tuple[Figure, Axes]:
    """An empty figure with axes of ID accuracy (x) and mean OOD accuracy (y).

    The axes have this width as a fraction of the figure; the rest is for a legend or colour bar.
    """
    drawn = ReportFigure(figsize=(8.6, 6.2), dpi=150, facecolor="white")
    axes = drawn.add_axes((_LEFT, 0.175, width, 0.70))
    drawn.text(_LEFT, 0.942, search.name, fontsize=15, fontweight="bold", color=INK)
    axes.set_title(subtitle, loc="left", fontsize=10.5, color=SOFT_INK, pad=9)
    axes.set_xlabel(f"ID accuracy on {search.id_domain}", fontsize=11, color=INK)
    number = len(search.ood_domains)
    mean = f"OOD accuracy, mean of {number} domain{'s' * (number != 1)}"
    axes.set_ylabel(mean, fontsize=11, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    plain_axes(axes, labelsize=9.5)
    return drawn, axes


def plain_axes(axes: Axes, labelsize: float) -> None:
    """Draw only the lines that help to read values: two borders and a pale grid."""
    axes.grid(color="#ECEEF1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=labelsize, colors="#3A3F47")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#C3C8CF")


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Few ticks for a logarithmic axis over this range, with labels that do not touch.

    Matplotlib's own labels are formulas, which `write_report` turns off.
    """
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.3 else (1.0, 3.0) if decades < 2.7 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save_figure(drawn: Figure, note: str, path: Path) -> Path:
    """Write the note below the axes, and the figure as a PNG into a folder that is made for it."""
    lines = textwrap.wrap(note, 122)
    drawn.text(
        _LEFT, 0.085, "\n".join(lines), fontsize=8.5, color=SOFT_INK, va="top", linespacing=1.4
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # There is room for three lines of 12 points; the page grows for more.
    width, height = drawn.get_size_inches()
    below = max(0, len(lines) - 3) * 12 / 72
    drawn.savefig(path, bbox_inches=Bbox([[0, -below], [width, height]]))
    return path


def legend_beside(axes: Axes, handles: Sequence[Artist], title: str | None = None) -> None:
    """A legend to the right of the axes: any corner inside may have a trial."""
    axes.legend(
        handles=handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.01),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
        handletextpad=0.5,
        labelspacing=0.65,
    )


def legend_mark(label: str, marker: str, colour: str, face: str, size: float = 6.5) -> Line2D:
    """A legend entry with a marker and no line."""
    mark = Line2D([], [], linestyle="", marker=marker, markersize=size, label=label)
    mark.set(color=colour, markerfacecolor=face)
    return mark


def accuracies(record: TrialRecord) -> tuple[float, float] | None:
    """ID and mean OOD accuracy at the last step; None unless both are finite."""
    x, y = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return None if x is None or y is None else (x, y)


def draw_zero_shot(
    axes: Axes,
    zero_shot: Mapping[str, float],
    name: str = ZERO_SHOT,
    *,
    metrics: tuple[str, str] = (ID_ACC, OOD_MEAN_ACC),
    offset: tuple[float, float] = (-6, 11),
    order: float = 4,
) -> None:
    """A star at the zero-shot model, if both its accuracies are finite."""
    x, y = (zero_shot.get(metric, math.nan) for metric in metrics)
    if math.isfinite(x) and math.isfinite(y):
        axes.scatter(x, y, s=230, marker="*", color=INK, edgecolor="white", zorder=order)
        label(axes, name, (x, y), offset=offset)


def label(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    colour: str = INK,
    offset: tuple[float, float] = (9, 6),
) -> None:
    """Bold text with a halo, `offset` typographic points from a point, towards the middle."""
    axes.autoscale_view()  # the transform below needs the limits of what is drawn so far
    x_fraction, _ = axes.transAxes.inverted().transform(axes.transData.transform(point))
    on_the_right = x_fraction > 0.7
    if on_the_right:
        offset = (-offset[0], offset[1])
    axes.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        va="top" if offset[1] < 0 else "bottom",
        fontsize=9.5,
        fontweight="bold",
        color=colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=6,
    )
