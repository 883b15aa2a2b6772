"""Figure of accuracy in distribution against accuracy under shift, one mark per trial."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.confirmation.results import read_results
from tuning.runs.ranking import best_trial
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.figures.frame import (
    BLUE,
    GREY,
    INK,
    SOFT_INK,
    VERMILION,
    accuracies,
    draw_zero_shot,
    label,
    legend_beside,
    log_ticks,
    new_figure,
)
from tuning.views.figures.method_markers import draw_methods, method_legend
from tuning.views.formatting import trial_label
from tuning.views.leaderboard import notes_of_early_trials, warning_of_reference
from tuning.views.linked_figures import MAX_LINKED, TRIAL_GID

COLOUR_BY = "method.reg_weight"
_POINT = re.compile(rf"line/([^/]+)/{ID_ACC}")
_MARKERS = {"finished": "o", "pruned": "v", "stopped": "s", "running": "D"}


def draw(search: SearchRecord, records: Sequence[TrialRecord]) -> tuple[Figure, str]:
    """The figure and the note below it; up and to the right is better.

    Failed trials and those without two finite accuracies are left out and counted in the note. With
    several methods, each has its own colour and marker.
    """
    several = len(search.methods(records)) > 1
    trials = [r for r in records if r.kind == "trial" and r.outcome != "failed" and accuracies(r)]
    drawn, axes = new_figure(search, "In distribution, and under shift", 0.70 if several else 0.77)
    axes.margins(0.09)
    warning = warning_of_reference(search, records)
    notes = [] if warning is None else [warning]
    notes += [search.selection, "Validation accuracy, each trial at its last step."]
    shown = [r for r in records if r.kind == "reference"] + trials
    note = " ".join(notes + notes_of_early_trials(search, shown))
    if several:
        draw_methods(axes, search, trials)
    else:
        _draw_trials(drawn, axes, trials)

    has_lines = _draw_lines(axes, shown)
    if has_lines:
        note += " Thin: from zero-shot to the end of each training, on a sample of the images."
    front = frontier(trials)
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        axes.step(xs, ys, where="pre", color=SOFT_INK, linewidth=0.9, zorder=2)
        note += f" Steps: the frontier over all {'lines' if has_lines else 'trials'}."
    if seeds := _draw_fresh_seeds(axes, search, shown):
        note += f" {seeds}"
    draw_zero_shot(axes, search.zero_shot)
    for record in records:
        point = accuracies(record)
        if record.kind == "reference" and point is not None:
            # Trials above and to the right of both lines are better in both accuracies.
            for line, value in zip((axes.axvline, axes.axhline), point, strict=True):
                line(value, color=GREY, linestyle=(0, (5, 4)), linewidth=1, zorder=1)
            mark = axes.scatter(*point, s=110, marker="X", color=INK, edgecolor="white", zorder=4)
            mark.set_gid(TRIAL_GID + record.trial_id)
            label(axes, trial_label(search, record), point, offset=(8, -5))
    best = best_trial(search, records)
    point = None if best is None else accuracies(best)
    if best is not None and point is not None:
        ring = axes.scatter(
            *point, s=265, facecolor="none", edgecolor=VERMILION, linewidth=2, zorder=5
        )
        ring.set_gid(TRIAL_GID + best.trial_id)
        label(axes, f"best: {best.trial_id}", point, colour=VERMILION, offset=(11, 10))

    if several:
        legend_beside(axes, method_legend(search, trials), "method, best first")
        note += " Large: the best of each method."
    elif axes.get_legend_handles_labels()[0]:
        # Above the axes, where no trial can be.
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.012, 0.995),
            ncols=len(_MARKERS),
            frameon=False,
            fontsize=9,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    left_out = sum(r.kind == "trial" for r in records) - len(trials)
    if not search.ood_domains:
        note += " The search has no OOD domain, so no trial is shown."
    elif left_out:
        note += f" Not shown: {left_out} that failed or have no result yet."
    return drawn, note


def _draw_trials(drawn: Figure, axes: Axes, trials: Sequence[TrialRecord]) -> None:
    """Trials of one method: markers by outcome, colours by `COLOUR_BY` if it was searched."""
    weights = [w for r in trials if (w := _weight(r)) is not None]
    norm = None
    if weights:
        low, high = min(weights), max(weights)
        if low == high:  # it gets a decade around it, since the bar needs a range
            low, high = low / 10**0.5, high * 10**0.5
        norm = LogNorm(low, high)
        bar_axes = drawn.add_axes((0.895, 0.175, 0.02, 0.70))
        bar = drawn.colorbar(ScalarMappable(norm, "viridis"), cax=bar_axes)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, which="both", labelsize=9, colors="#3A3F47")
        log_ticks(bar.ax.yaxis, low, high)
        bar.ax.set_title("reg.\nweight", fontsize=9, color=INK, pad=8)
    for outcome, marker in _MARKERS.items():
        group = [record for record in trials if record.outcome == outcome]
        if not group:
            continue
        linked = len(trials) <= MAX_LINKED
        for marked in [[record] for record in group] if linked else [group]:
            xs, ys = zip(*(p for r in marked if (p := accuracies(r)) is not None), strict=True)
            mark = axes.scatter(
                xs,
                ys,
                c=[_weight(r) or math.nan for r in marked] if norm else BLUE,
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
            if linked:
                mark.set_gid(TRIAL_GID + marked[0].trial_id)
        # An empty series in one neutral colour makes the entry of the legend.
        axes.scatter([], [], marker=marker, s=52, color=GREY, label=f"{outcome} ({len(group)})")


def _draw_lines(axes: Axes, records: Sequence[TrialRecord]) -> bool:
    """Draw the line of each trial between zero-shot and the end of its training; whether any has
    one (`trial.eval.line`)."""
    curves = [line_of(record) for record in records]
    for curve in curves:
        axes.plot(
            [x for _, x, _ in curve], [y for _, _, y in curve],
            color=SOFT_INK, linewidth=0.7, alpha=0.55, zorder=1.5,
        )  # fmt: skip
    return any(curves)


def line_of(record: TrialRecord) -> list[tuple[float, float, float]]:
    """Point, ID and mean OOD accuracy in percent of each measured point of a trial's line."""
    points = []
    for name in record.metrics:
        if match := _POINT.fullmatch(name):
            accs = record.last(name), record.last(f"line/{match[1]}/{OOD_MEAN_ACC}")
            if accs[0] is not None and accs[1] is not None:
                points.append((float(match[1]), accs[0], accs[1]))
    return sorted(points)


def frontier(trials: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    """The results and points of lines, as ID and OOD accuracy, to which none is better in both."""
    points = []
    for trial in trials:
        if trial.outcome == "finished" and (result := accuracies(trial)) is not None:
            points += [result, *((x, y) for _, x, y in line_of(trial))]
    front: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def _draw_fresh_seeds(axes: Axes, search: SearchRecord, records: Sequence[TrialRecord]) -> str:
    """Draw the noise between seeds that `confirm` measured, and return a sentence about it.

    Each trial that was trained again has a cross at the mean validation accuracies of its fresh
    seeds, whose arms are standard deviations. Returns an empty sentence if there is no cross.
    """
    try:
        results = read_results(search.run_folder)
    except ConfigError:  # the report has a sentence about it where the test accuracies would be
        return ""
    numbers = set()
    for record in records:
        metrics = [r.metrics for (name, _), r in results.items() if name == record.trial_id]
        found = [(m.get(ID_ACC, math.nan), m.get(OOD_MEAN_ACC, math.nan)) for m in metrics]
        pairs = [pair for pair in found if all(map(math.isfinite, pair))]
        point = accuracies(record)
        if point is None or len(pairs) < 2:
            continue
        ids, oods = zip(*pairs, strict=True)
        (x, dx), (y, dy) = (fmean(ids), stdev(ids)), (fmean(oods), stdev(oods))
        xs, ys = (x - dx, x, x + dx, math.nan, x, x), (y, y, y, math.nan, y - dy, y + dy)
        cross = axes.plot(xs, ys, color=INK, linewidth=1.3, zorder=2.6, marker="o", markersize=4.5,
                          markerfacecolor="white", markevery=[1])  # fmt: skip
        cross[0].set_gid(TRIAL_GID + record.trial_id)
        axes.plot((point[0], x), (point[1], y), ":", color=INK, linewidth=1.1, zorder=2.5)
        numbers.add(len(pairs))
    if not numbers:
        return ""
    number = " to ".join(map(str, sorted({min(numbers), max(numbers)})))
    return (
        f"Crosses: mean and standard deviation of {number} fresh seeds (lipsum-tune confirm), "
        "each joined to its trial."
    )


def _weight(record: TrialRecord) -> float | None:
    """The parameter that colours a trial; None if a log scale cannot show it."""
    value = record.params.get(COLOUR_BY)
    return float(value) if isinstance(value, int | float) and value > 0 else None
