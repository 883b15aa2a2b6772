"""Marks for the trials of several methods: each method has its own colour and marker.

A dozen colours cannot be told apart with every colour vision, and markers alone take effort to
read. The best trial of each method is large, the others are small and pale.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import best_by_method
from tuning.views.figures.frame import GREY, INK, accuracies, legend_mark
from tuning.views.linked_figures import TRIAL_GID

# Paul Tol's muted scheme, safe with every common colour blindness, with a darker sand that is
# visible on white. With eleven markers, no pair repeats before the 100th method.
_COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "h", ">", "d", "p")


def draw_methods(axes: Axes, search: SearchRecord, trials: Sequence[TrialRecord]) -> None:
    """A mark per trial, by method: the best of each large, finished ones filled, others hollow."""
    best = {record.trial_id for record in best_by_method(search, trials).values()}
    looks = _looks(search, trials)
    for record in sorted(trials, key=lambda r: r.trial_id in best):
        point = accuracies(record)
        if point is None:
            continue
        colour, marker = looks[search.method(record) or ""]
        chosen, finished = record.trial_id in best, record.outcome == "finished"
        mark = axes.scatter(
            *point,
            s=130 if chosen else 42,
            marker=marker,
            facecolor=colour if finished else "none",
            edgecolor=INK if chosen else "white" if finished else colour,
            linewidth=1.1 if chosen or not finished else 0.6,
            alpha=1.0 if chosen else 0.6,
            zorder=3.5 if chosen else 3,
        )
        mark.set_gid(TRIAL_GID + record.trial_id)


def method_legend(search: SearchRecord, trials: Sequence[TrialRecord]) -> list[Line2D]:
    """Legend entries: the methods in the order of their best trials, then filled and hollow."""
    looks = _looks(search, trials)
    handles = []
    for name in dict.fromkeys([*best_by_method(search, trials), *looks]):
        colour, marker = looks[name]
        handles.append(legend_mark(name, marker, colour, colour, 7.5))
    for label, finished in (("finished", True), ("not finished", False)):
        if any((record.outcome == "finished") == finished for record in trials):
            handles.append(legend_mark(label, "o", GREY, GREY if finished else "none"))
    return handles


def _looks(search: SearchRecord, trials: Sequence[TrialRecord]) -> dict[str, tuple[str, str]]:
    """Method -> colour and marker, by the order of proposal, which further trials do not change."""
    ordered = sorted(trials, key=lambda record: record.number)
    names = dict.fromkeys(search.method(record) or "" for record in ordered)
    return {name: look(index) for index, name in enumerate(names)}


def look(index: int) -> tuple[str, str]:
    """The colour and marker of the method, or model, with this number."""
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
