"""The figure of a search: accuracy in distribution against accuracy under shift, a mark a trial.

Matplotlib's objects with the Agg canvas, no pyplot: nothing global changes, no display is needed,
and a driver may draw from any thread.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from tuning.reporting.figures.method_markers import draw_methods, method_legend
from tuning.runs.records import ID_ACC, OOD_MEAN_ACC, SearchRecord, TrialRecord
from tuning.selection.rules import PARETO, best_trial, choices

COLOUR_BY = "method.reg_weight"
_MARKERS = {"finished": "o", "pruned": "v", "stopped": "s", "running": "D"}
# Okabe-Ito, told apart with every common colour blindness; the colour bar is viridis.
_BLUE, _VERMILION, _GREY, _INK, _SOFT_INK = "#0072B2", "#D55E00", "#8A8F98", "#22262B", "#5B616B"
_PLOT_BOX = (0.095, 0.175, 0.77, 0.70)
_BAR_BOX = (0.895, 0.175, 0.02, 0.70)
_PLOT_BOX_BESIDE_METHODS = (0.095, 0.175, 0.70, 0.70)


def figure(search: SearchRecord, records: Sequence[TrialRecord], path: Path) -> Path:
    """A PNG of ID against OOD accuracy, one mark a trial; up and to the right is better.

    Trials that failed, or that have no finite accuracy, are left out and counted in the footnote.
    Where there are several methods, each has marks of its own.

    Returns:
        The path, whose folder is made if need be.
    """
    drawn = Figure(figsize=(8.6, 6.2), dpi=150, facecolor="white")
    FigureCanvasAgg(drawn)
    several = len(search.methods(records)) > 1
    axes = drawn.add_axes(_PLOT_BOX_BESIDE_METHODS if several else _PLOT_BOX)
    draw_frame(axes, search, "In distribution, and under shift")
    trials = [r for r in records if r.kind == "trial" and r.outcome != "failed" and _xy(r)]
    axes.margins(0.09)
    if several:
        draw_methods(axes, search, trials)
    else:
        _draw_trials(drawn, axes, trials)
    has_front = _draw_front(axes, search, records)
    _draw_references(axes, search, records, "FT, reference" if several else "FT")
    _draw_best(axes, best_trial(search, records))
    if several:
        _draw_method_legend(axes, search, trials)
    elif axes.get_legend_handles_labels()[0]:
        # Above the plot: any corner inside may be where a trial is.
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.012, 0.995),
            ncols=len(_MARKERS),
            frameon=False,
            fontsize=9,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    drawn.text(_PLOT_BOX[0], 0.942, search.name, fontsize=15, fontweight="bold", color=_INK)
    left_out = sum(r.kind == "trial" for r in records) - len(trials)
    note = search.selection + " Validation accuracy, each trial at its last step."
    if has_front:
        note += " Line: Pareto front."
    if several:
        note += " Large: the best of each method."
    if left_out:
        note += f" Not shown: {left_out} that failed or have no result yet."
    note = "\n".join(textwrap.wrap(note, 122))
    drawn.text(_PLOT_BOX[0], 0.085, note, fontsize=8.5, color=_SOFT_INK, va="top", linespacing=1.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    return path


def _draw_method_legend(axes: Axes, search: SearchRecord, trials: Sequence[TrialRecord]) -> None:
    """Beside the plot: any corner inside may be where a trial is."""
    axes.legend(
        handles=method_legend(search, trials),
        title="method, best first",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.01),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
        handletextpad=0.3,
        labelspacing=0.65,
    )


def draw_frame(axes: Axes, search: SearchRecord, subtitle: str) -> None:
    """Axes of ID accuracy, to the right, and mean OOD accuracy, up."""
    axes.set_xlabel(f"ID accuracy on {search.id_domain}", fontsize=11, color=_INK)
    domains = len(search.ood_domains)
    axes.set_ylabel(
        f"OOD accuracy, mean of {domains} domain{'s' * (domains != 1)}", fontsize=11, color=_INK
    )
    axes.set_title(subtitle, loc="left", fontsize=10.5, color=_SOFT_INK, pad=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.grid(color="#ECEEF1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, colors="#3A3F47")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#C3C8CF")


def _draw_references(
    axes: Axes, search: SearchRecord, records: Iterable[TrialRecord], plain: str
) -> None:
    """The zero-shot star, and plain fine-tuning with lines: beyond both a trial beats it twice."""
    x, y = search.zero_shot.get(ID_ACC), search.zero_shot.get(OOD_MEAN_ACC)
    if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
        axes.scatter(x, y, s=230, marker="*", color=_INK, edgecolor="white", zorder=4)
        label(axes, "zero-shot", (x, y), offset=(-6, 11))
    for record in records:
        point = _xy(record)
        if record.kind != "reference" or point is None:
            continue
        axes.axvline(point[0], color=_GREY, linestyle=(0, (5, 4)), linewidth=1, zorder=1)
        axes.axhline(point[1], color=_GREY, linestyle=(0, (5, 4)), linewidth=1, zorder=1)
        axes.scatter(*point, s=110, marker="X", color=_INK, edgecolor="white", zorder=4)
        # Below: most trials lie above it.
        name = plain if record.trial_id == "ft" else record.trial_id
        label(axes, name, point, offset=(8, -14))


def _draw_trials(drawn: Figure, axes: Axes, trials: Sequence[TrialRecord]) -> None:
    weights = [w for r in trials if (w := _weight(r)) is not None]
    norm = None
    if weights:
        low, high = min(weights), max(weights)
        # A bar needs a width; a search with one weight gets a decade around it.
        norm = LogNorm(low, high) if low < high else LogNorm(low / 10**0.5, high * 10**0.5)
        _draw_colour_bar(drawn, norm)
    for outcome, marker in _MARKERS.items():
        group = [r for r in trials if r.outcome == outcome]
        points = [point for r in group if (point := _xy(r)) is not None]
        if not points:
            continue
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            c=[_weight(r) or math.nan for r in group] if norm else _BLUE,
            norm=norm,
            cmap="viridis" if norm else None,
            plotnonfinite=True,
            marker=marker,
            s=88 if outcome == "finished" else 58,
            alpha=1.0 if outcome == "finished" else 0.8,
            edgecolor="white",
            linewidth=0.9,
            zorder=3,
        )
        # The key of the legend, in one neutral colour.
        axes.scatter([], [], marker=marker, s=52, color=_GREY, label=f"{outcome} ({len(group)})")


def _draw_colour_bar(drawn: Figure, norm: LogNorm) -> None:
    bar = drawn.colorbar(ScalarMappable(norm, "viridis"), cax=drawn.add_axes(_BAR_BOX))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, which="both", labelsize=9, colors="#3A3F47")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.set_title("reg.\nweight", fontsize=9, color=_INK, pad=8)


def _draw_front(axes: Axes, search: SearchRecord, records: Sequence[TrialRecord]) -> bool:
    """A thin staircase along the trials that none beats in both; one alone makes none."""
    pareto = next(choice for choice in choices(search, records) if choice.rule == PARETO)
    points = sorted(point for trial in pareto.trials if (point := _xy(trial)) is not None)
    if len(points) < 2:
        return False
    axes.step(
        [x for x, _ in points],
        [y for _, y in points],
        where="pre",
        color=_SOFT_INK,
        linewidth=0.9,
        zorder=2,
    )
    return True


def _draw_best(axes: Axes, best: TrialRecord | None) -> None:
    point = None if best is None else _xy(best)
    if best is None or point is None:
        return
    axes.scatter(*point, s=265, facecolor="none", edgecolor=_VERMILION, linewidth=2, zorder=5)
    label(axes, f"best: {best.trial_id}", point, colour=_VERMILION, offset=(11, 10))


def label(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    colour: str = _INK,
    offset: tuple[float, float] = (9, 6),
) -> None:
    """Bold text `offset` points away from a point, towards the middle, with a readable halo."""
    axes.autoscale_view()  # the limits so far, or there is no telling where the point lies
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
        fontsize=9.5,
        fontweight="bold",
        color=colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=6,
    )


def _xy(record: TrialRecord) -> tuple[float, float] | None:
    x, y = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return None if x is None or y is None else (x, y)


def _weight(record: TrialRecord) -> float | None:
    """The value that colours a trial; None where a log scale cannot show it."""
    value = record.params.get(COLOUR_BY)
    return float(value) if isinstance(value, int | float) and value > 0 else None
