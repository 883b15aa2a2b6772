"""The trials of several methods in one image: a colour and a marker of its own for each method.

Neither alone would do: a dozen colours cannot be told apart by everybody, and markers alone make
the eye search. Of each method the best trial stands out, and the others stay as its shadow.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tuning.runs.records import ID_ACC, OOD_MEAN_ACC, SearchRecord, TrialRecord
from tuning.selection.rules import best_by_method

# Paul Tol's muted scheme, safe with every common colour blindness; its sand is darker here, to be
# seen on white. With eleven markers a pair comes again only after 99 methods.
_COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "h", ">", "d", "p")
_INK, _GREY = "#22262B", "#8A8F98"


def draw_methods(axes: Axes, search: SearchRecord, trials: Sequence[TrialRecord]) -> None:
    """A mark a trial, by method: the best of each large, finished ones filled, others hollow.

    Args:
        axes: of ID accuracy against mean OOD accuracy.
        search: what the best is by.
        trials: those to draw, in any order; all have both accuracies.
    """
    best = {record.trial_id for record in best_by_method(search, trials).values()}
    looks = _looks(search, trials)
    for record in sorted(trials, key=lambda r: r.trial_id in best):
        colour, marker = looks[search.method(record) or ""]
        chosen, finished = record.trial_id in best, record.outcome == "finished"
        axes.scatter(
            record.metrics[ID_ACC],
            record.metrics[OOD_MEAN_ACC],
            s=130 if chosen else 42,
            marker=marker,
            facecolor=colour if finished else "none",
            edgecolor=_INK if chosen else "white" if finished else colour,
            linewidth=1.1 if chosen or not finished else 0.6,
            alpha=1.0 if chosen else 0.6,
            zorder=3.5 if chosen else 3,
        )


def method_legend(search: SearchRecord, trials: Sequence[TrialRecord]) -> list[Artist]:
    """Handles of a legend: the methods, in the order of their best trials, and what is hollow."""
    looks = _looks(search, trials)
    order = dict.fromkeys([*best_by_method(search, trials), *looks])
    handles: list[Artist] = [
        Line2D(
            [], [], linestyle="", color=looks[name][0], marker=looks[name][1], ms=7.5, label=name
        )
        for name in order
    ]
    for label, hollow in (("finished", False), ("not finished", True)):
        if any((record.outcome != "finished") == hollow for record in trials):
            face = "none" if hollow else _GREY
            mark = Line2D([], [], linestyle="", marker="o", markersize=6.5, label=label)
            mark.set(color=_GREY, markerfacecolor=face)
            handles.append(mark)
    return handles


def _looks(search: SearchRecord, trials: Sequence[TrialRecord]) -> dict[str, tuple[str, str]]:
    """Method -> colour and marker, by the order of proposal, which further trials do not change."""
    ordered = sorted(trials, key=lambda record: record.number)
    names = dict.fromkeys(search.method(record) or "" for record in ordered)
    return {
        name: (_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)])
        for index, name in enumerate(names)
    }
