"""Small figures of the report: domains, curves, importance and slices of the hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from trainers.evaluation.metrics import ID_ACC, MEAN_OOD, OOD_MEAN_ACC, MetricKey, val_acc
from tuning.algorithms.studies import quiet_optuna
from tuning.runs.ranking import best_trial
from tuning.runs.records import STEP, ZERO_SHOT, SearchRecord, TrialRecord
from tuning.views.figures.frame import (
    BLUE,
    GREEN,
    GREY,
    INK,
    SOFT_INK,
    VERMILION,
    ReportFigure,
    log_ticks,
    plain_axes,
)
from tuning.views.formatting import format_metric, format_percent, short_names, trial_label
from tuning.views.linked_figures import TRIAL_GID

DISTANCES = {
    str(MetricKey("val", MEAN_OOD, "energy_gap")): "energy gap",
    str(MetricKey("val", MEAN_OOD, "feature_distortion")): "feature distortion",
}
"""Metrics of the distance from the zero-shot model, and their names in figures."""
MIN_TRIALS = 6
"""Finished trials from which on importance says something."""
_TREE_DEPTH = 8
"""Depth of fANOVA's trees. Full trees of 1000 trials take 8 times as long; importance changes by
0.01."""
_MANY_TRIALS = 300
"""Above this, trials are drawn as pixels: their vectors would make a page of several MB."""
_CONTOUR_KEYS = 3
"""Hyperparameters of which contours are drawn, each pair in a panel."""
_TICKS = (1, 2, 5, 10)
"""Distances of two ticks, times a power of ten."""
_LOG_RANGE = 10.0
"""A positive parameter whose values span this factor is drawn on a log scale."""


def domains_figure(search: SearchRecord, records: Sequence[TrialRecord]) -> Figure:
    """Validation accuracy by domain: zero-shot, the references, and the best trial."""
    models = {ZERO_SHOT: search.zero_shot}
    models |= {trial_label(search, r): r.metrics for r in records if r.kind == "reference"}
    if best := best_trial(search, records):
        models[f"best: {best.trial_id}"] = best.metrics
    names = [f"{search.id_domain} (ID)", *search.ood_domains]
    keys = [ID_ACC, *(val_acc(domain) for domain in search.ood_domains)]
    drawn, (axes,) = small_axes(1, width=1.4 + 1.3 * len(keys))
    for index, (name, metrics) in enumerate(models.items()):
        places = np.arange(len(keys)) + 0.8 * (index + 0.5) / len(models) - 0.4
        values = [metrics.get(key, math.nan) for key in keys]
        bars = axes.bar(
            places, values, 0.74 / len(models), label=name, color=_colour(index, len(models))
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=7, color=SOFT_INK)
    axes.set_xticks(range(len(keys)), names)
    axes.set_ylabel("validation accuracy, %")
    axes.legend(
        frameon=False, fontsize=8, ncols=len(models), loc="lower left", bbox_to_anchor=(0, 1)
    )
    return drawn


def curves_figure(search: SearchRecord, records: Sequence[TrialRecord]) -> Figure:
    """The objective of every trial over its steps; pruned trials are dotted."""
    objective = search.objectives[0].metric
    best, many = best_trial(search, records), len(records) > _MANY_TRIALS
    drawn, (axes,) = small_axes(1, width=7.5)
    for record in records:
        points = [(p[STEP], p[objective]) for p in record.curve if objective in p]
        if not points:
            continue
        is_best = best is not None and record.trial_id == best.trial_id
        colour = VERMILION if is_best else INK if record.kind == "reference" else BLUE
        style = "-" if record.outcome == "finished" else ":"
        strong = is_best or record.kind == "reference"
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, style, marker=".", color=colour, alpha=1.0 if strong else 0.45,
                  linewidth=1.8 if strong else 1.0, zorder=3 if strong else 2,
                  rasterized=many and not strong, gid=TRIAL_GID + record.trial_id)  # fmt: skip
        if strong:
            label = trial_label(search, record, "\n ")
            axes.annotate(f" {label}", points[-1], color=colour, fontsize=8, va="center")
    if (zero_shot := search.zero_shot.get(objective)) is not None:
        axes.axhline(zero_shot, color=GREY, linestyle=(0, (5, 4)), linewidth=1)
        axes.annotate(ZERO_SHOT, (0, zero_shot), xycoords=axes.get_yaxis_transform(),
                      color=SOFT_INK, fontsize=8, va="bottom")  # fmt: skip
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=_TICKS))
    in_percent = format_metric(objective) is format_percent
    axes.set_ylabel(f"{objective}, %" if in_percent else objective)
    return drawn


def importance_lacks(records: Sequence[TrialRecord]) -> str | None:
    """One sentence if too few trials have finished, or too few parameters vary, for importance."""
    trials, keys = _varied(records)
    if len(trials) < MIN_TRIALS:
        have = f"{len(trials)} so far" if trials else "none so far"
        return f"The importance of hyperparameters needs {MIN_TRIALS} finished trials ({have})."
    return None if len(keys) > 1 else "Importance needs two hyperparameters that vary."


def importance_figure(records: Sequence[TrialRecord]) -> Figure | None:
    """Importance of each hyperparameter for ID and OOD accuracy, by Optuna's fANOVA.

    Each parameter is replaced by the rank of its value, so that importance refers to the points
    that were tried, whatever their scale. Importances are the main effects in a forest, relative to
    their sum: they add up to 1 even if no hyperparameter matters. None if `importance_lacks`
    something.
    """
    if importance_lacks(records):
        return None
    trials, keys = _varied(records)
    drawn, (axes,) = small_axes(1, width=6.0, height=1.2 + 0.5 * len(keys))
    for index, (metric, name, colour) in enumerate(
        ((ID_ACC, "ID accuracy", BLUE), (OOD_MEAN_ACC, "mean OOD accuracy", VERMILION))
    ):
        if metric not in trials[0].metrics:
            continue
        found = _importances(trials, keys, metric)
        places = np.arange(len(keys))[::-1] + (0.2 if index == 0 else -0.2)
        bars = axes.barh(
            places, [found.get(key, 0.0) for key in keys], 0.36, color=colour, label=name
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8, color=SOFT_INK, padding=2)
    axes.set_yticks(np.arange(len(keys))[::-1], short_names(keys))
    axes.set_xlabel(f"relative importance (fANOVA, {len(trials)} finished trials)")
    axes.set_xlim(0, 1.08)
    axes.legend(frameon=False, fontsize=8)
    return drawn


def sentence_figure(sentence: str) -> Figure:
    """A sentence in place of a figure that cannot be drawn yet."""
    drawn, (axes,) = small_axes(1, width=6.0, height=1.0)
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=9, color=SOFT_INK)
    return drawn


def drift_figure(search: SearchRecord, records: Sequence[TrialRecord]) -> Figure | None:
    """OOD accuracy of the finished trials over their distance from the zero-shot model.

    The distances are the means over the OOD domains of `energy_gap` and `feature_distortion`. None
    if no two trials have them.
    """
    best = best_trial(search, records)
    trials = [r for r in _varied(records)[0] if all(r.last(key) is not None for key in DISTANCES)]
    if len(trials) < 2:
        return None
    drawn, panels = small_axes(len(DISTANCES), width=7.5)
    values = [record.metrics[OOD_MEAN_ACC] for record in trials]
    for axes, (key, name) in zip(panels, DISTANCES.items(), strict=True):
        distances = [record.metrics[key] for record in trials]
        axes.scatter(distances, values, s=26, color=BLUE, alpha=0.8,
                     rasterized=len(trials) > _MANY_TRIALS)  # fmt: skip
        if best is not None and best in trials:
            place = trials.index(best)
            axes.scatter(distances[place], values[place], s=50, color=VERMILION, marker="X")
            axes.annotate(best.trial_id, (distances[place], values[place]), (6, 0),
                          textcoords="offset points", color=VERMILION, fontsize=8,
                          va="center")  # fmt: skip
        if (zero_shot := search.zero_shot.get(OOD_MEAN_ACC)) is not None:
            axes.axhline(zero_shot, color=GREY, linestyle=(0, (5, 4)), linewidth=1)
        _scale(axes.xaxis, distances)
        axes.set_xlabel(name)
    panels[0].set_ylabel("mean OOD accuracy, %")
    return drawn


def slices_figure(records: Sequence[TrialRecord]) -> Figure | None:
    """ID and OOD accuracy of the finished trials over each hyperparameter; None if none varies."""
    trials, keys = _varied(records)
    if not keys:
        return None
    drawn, panels = small_axes(len(keys), width=3.1 * len(keys))
    for axes, key, name in zip(panels, keys, short_names(keys), strict=True):
        shown = [record for record in trials if key in record.params]
        values = [record.params[key] for record in shown]
        numbers = [v for v in values if _is_number(v)]
        xs = values if len(numbers) == len(values) else [str(value) for value in values]
        for metric, label, colour, marker in (
            (ID_ACC, "ID", BLUE, "o"),
            (OOD_MEAN_ACC, "mean OOD", VERMILION, "^"),
        ):
            if metric not in shown[0].metrics:
                continue
            axes.scatter(xs, [record.metrics[metric] for record in shown], s=26, color=colour,
                         marker=marker, alpha=0.8, label=label,
                         rasterized=len(shown) > _MANY_TRIALS)  # fmt: skip
        if len(numbers) == len(values):
            _scale(axes.xaxis, numbers)
        axes.set_xlabel(name)
    panels[0].set_ylabel("validation accuracy, %")
    panels[0].legend(frameon=False, fontsize=8)
    return drawn


def contours_figure(search: SearchRecord, records: Sequence[TrialRecord]) -> Figure | None:
    """The first objective over each pair of the most important numeric hyperparameters.

    Linear interpolation between the finished trials, as in Optuna's contour plot. None for fewer
    than `MIN_TRIALS` trials, or without two hyperparameters that vary independently.
    """
    metric = search.objectives[0].metric
    trials, keys = _varied(records)
    trials = [record for record in trials if record.last(metric) is not None]
    keys = [key for key in keys if all(_is_number(record.params.get(key)) for record in trials)]
    if len(trials) < MIN_TRIALS:
        return None
    if len(keys) > _CONTOUR_KEYS:
        importances = _importances(trials, keys, metric)
        keys = sorted(keys, key=lambda key: -importances.get(key, 0.0))[:_CONTOUR_KEYS]
    values = {key: np.array([float(record.params[key]) for record in trials]) for key in keys}
    places = {key: np.log10(v) if _is_log(v) else v for key, v in values.items()}
    unit = {key: (v - v.min()) / max(np.ptp(v), 1e-12) for key, v in places.items()}
    pairs = [
        (one, two)
        for one, two in combinations(keys, 2)
        if np.linalg.matrix_rank(np.cov(unit[one], unit[two]), tol=1e-6) == 2
    ]
    if not pairs:
        return None
    names = dict(zip(keys, short_names(keys), strict=True))
    drawn, panels = small_axes(len(pairs), width=0.8 + 3.4 * len(pairs), common_y=False)
    heights = [record.metrics[metric] for record in trials]
    for axes, (one, two) in zip(panels, pairs, strict=True):
        triangles = Triangulation(unit[one], unit[two]).triangles
        mesh = Triangulation(values[one], values[two], triangles)
        surface = axes.tricontourf(mesh, heights, levels=10, cmap="cividis")
        surface.set_rasterized(len(trials) > _MANY_TRIALS)
        axes.scatter(values[one], values[two], s=10, color="white", edgecolor=INK, linewidth=0.6,
                     rasterized=len(trials) > _MANY_TRIALS)  # fmt: skip
        for key, axis in ((one, axes.xaxis), (two, axes.yaxis)):
            _scale(axis, values[key])
            axis.set_label_text(names[key])
    drawn.colorbar(surface, ax=panels, label=metric)
    return drawn


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scale(axis: Axis, values: Sequence[Any] | np.ndarray) -> None:
    """Draw numbers on a logarithmic axis if they span much, and otherwise with few ticks."""
    if _is_log(values):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
        log_ticks(axis, min(values), max(values))
    else:
        axis.set_major_locator(MaxNLocator(4, steps=_TICKS))


def _is_log(values: Sequence[Any] | np.ndarray) -> bool:
    """Whether numbers are drawn on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > _LOG_RANGE


def _varied(records: Sequence[TrialRecord]) -> tuple[list[TrialRecord], list[str]]:
    """Finished trials with both accuracies, and the parameters with several values.

    Without OOD domains, trials have one accuracy.
    """
    finished = [r for r in records if r.kind == "trial" and r.outcome == "finished"]
    metrics = [m for m in (ID_ACC, OOD_MEAN_ACC) if any(m in r.metrics for r in finished)]
    trials = [r for r in finished if all(r.last(m) is not None for m in metrics)]
    keys = dict.fromkeys(key for record in trials for key in record.params)
    return trials, [k for k in keys if len({r.params[k] for r in trials if k in r.params}) > 1]


def _importances(
    trials: Sequence[TrialRecord], keys: Sequence[str], metric: str
) -> dict[str, float]:
    if len({record.metrics[metric] for record in trials}) == 1:
        return {}
    with quiet_optuna():
        study = optuna.create_study()
        ranks = {key: _ranks([record.params.get(key) for record in trials]) for key in keys}
        unit = optuna.distributions.FloatDistribution(0.0, 1.0)
        study.add_trials(
            optuna.create_trial(
                params={key: ranks[key][index] for key in keys},
                distributions=dict.fromkeys(keys, unit),
                value=record.metrics[metric],
            )
            for index, record in enumerate(trials)
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(max_depth=_TREE_DEPTH, seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _ranks(values: Sequence[object]) -> list[float]:
    """The place of each value among all, 0 to 1; equal values share a place."""
    order = sorted(set(values), key=lambda v: (isinstance(v, str), v is None, v))
    places = {value: place for place, value in enumerate(order)}
    return [places[value] / max(len(order) - 1, 1) for value in values]


def small_axes(
    number: int, width: float, height: float = 3.4, *, common_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side; sizes in inches."""
    drawn = ReportFigure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = list(np.atleast_1d(drawn.subplots(1, number, sharey=common_y)))
    for axes in panels:
        plain_axes(axes, labelsize=8.5)
    return drawn, panels


def _colour(index: int, number: int) -> str:
    """Grey for zero-shot, vermilion for the best, which is last; others between."""
    if index == 0:
        return GREY
    return VERMILION if index == number - 1 else (BLUE, GREEN)[(index - 1) % 2]
