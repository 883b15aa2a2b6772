"""Figure of a confirmation: ID against OOD test accuracy of every seed, with means."""

from __future__ import annotations

from matplotlib.figure import Figure

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.results import FT, SPLIT, Confirmation
from tuning.runs.records import METHOD_KEY
from tuning.views.figures.frame import (
    INK,
    draw_zero_shot,
    legend_beside,
    legend_mark,
    new_figure,
)
from tuning.views.figures.method_markers import look
from tuning.views.formatting import untuned_label

_METRICS = str(MetricKey(SPLIT, ID, "acc")), str(MetricKey(SPLIT, MEAN_OOD, "acc"))


def confirmed_figure(confirmation: Confirmation) -> tuple[Figure, str] | None:
    """The figure and the note below it; None if no seed has both accuracies.

    A small mark for each seed, a large one for the mean, whose bars are its 95 % intervals.
    """
    drawn, axes = new_figure(confirmation.search, "Test splits, trained on fresh seeds", 0.66)
    handles = []
    for index, one in enumerate(confirmation.configurations):
        ids, oods = (confirmation.values(one.trial_id, metric) for metric in _METRICS)
        points = [(ids[seed], oods[seed]) for seed in ids if seed in oods]
        x, y = (confirmation.estimate(one.trial_id, metric) for metric in _METRICS)
        if not points or x is None or y is None:
            continue
        is_reference = one.trial_id == FT
        colour, marker = (INK, "X") if is_reference else look(index - 1)
        # Above the mean, which is hollow, so that seeds close to it can be seen.
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=20, marker=marker, color=colour, edgecolor="white", linewidth=0.5,
                     zorder=4)  # fmt: skip
        axes.errorbar(
            x.mean, y.mean,
            xerr=[[x.mean - x.low], [x.high - x.mean]],
            yerr=[[y.mean - y.low], [y.high - y.mean]],
            marker=marker, markersize=12, color=colour, markerfacecolor="white",
            linewidth=1.3, capsize=3, zorder=3,
        )  # fmt: skip
        method = one.params.get(METHOD_KEY)
        name = one.trial_id if method is None else f"{one.trial_id} ({method})"
        named = untuned_label(confirmation.search, "\n") if is_reference else name
        handles.append(legend_mark(named, marker, colour, "white", 9))
    if not handles:
        return None
    draw_zero_shot(axes, confirmation.zero_shot, metrics=_METRICS)
    legend_beside(axes, handles)
    return drawn, "Small: one seed each. Large: their mean, with 95 % intervals (Student's t)."
