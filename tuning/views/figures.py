"""The figures of a run as Plotly figures: for the page, and for notebooks as `run.plot`.

They hold every value as text on the point, so that no figure needs a second one beside it. Colours
are readable on white and on black; the page sets the rest of its theme by script.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState
from rich.console import Console

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.algorithms.studies import quiet_optuna
from tuning.runs.ranking import best_trial, by_objectives
from tuning.runs.records import (
    AVERAGED,
    EVAL_IMAGES,
    STEP,
    ZERO_SHOT,
    SearchRecord,
    TrialRecord,
)
from tuning.views.formatting import format_params, short_names, trial_label
from tuning.views.leaderboard import report
from tuning.views.lines import frontier, line_of

MIN_TRIALS = 6
"""Finished trials from which on importance and contours say something."""
CONTOUR_TRIALS = 100
TREE_DEPTH = 8
"""Of fANOVA. Full trees of 1,000 trials take 8 times as long; importance changes by 0.01."""
LOG_RANGE = 10.0
"""A positive parameter whose values span this factor is drawn on a log scale."""
# Okabe-Ito's, distinct with every common colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800")
BEST, SOFT = "#D55E00", "#80868f"
SCALE = [[0, "#5c3a8c"], [0.35, "#31688e"], [0.7, "#35b779"], [1, "#b5c728"]]
"""Viridis without its ends, which cannot be seen on black or on white."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "pentagon")
_STATES = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True, repr=False)
class Plots:
    """The figures of a run, which notebooks show. They are drawn anew at each call."""

    search: SearchRecord
    records: Sequence[TrialRecord]

    def _repr_html_(self) -> str:
        """The main figure and the leaderboard."""
        # The script comes from a content network, as notebooks do with Plotly's figures.
        figure = self.id_vs_ood().to_html(full_html=False, include_plotlyjs="cdn")
        console = Console(record=True, width=120, file=io.StringIO())
        console.print(report(self.search, self.records, 120))
        text = console.export_text()
        return f"{figure}<pre>{escape(text)}</pre>"

    def id_vs_ood(self) -> go.Figure:
        """ID against mean OOD accuracy of the finished trials, with their lines.

        Trials that ended early, whose accuracies belong to another step, are hidden until their
        entry of the legend is clicked.
        """
        search, records = self.search, self.records
        drawn = _figure(
            f"ID accuracy on {search.id_domain}, %",
            f"OOD accuracy, mean of {len(search.ood_domains)}, %",
        )
        shown = [r for r in records if r.outcome != "failed" and _point(r) is not None]
        trials = [record for record in shown if record.kind == "trial"]
        finished = [record for record in trials if record.outcome == "finished"]
        best = best_trial(search, records)
        lined = [r for r in shown if r.outcome == "finished" and line_of(r)]
        if lined:
            points = [point for record in lined for point in (*line_of(record), (None, None, None))]
            _, xs, ys = zip(*points, strict=True)
            drawn.add_scatter(
                x=xs, y=ys, mode="lines", name="zero-shot to end", hoverinfo="skip",
                line={"width": 0.8, "color": SOFT}, opacity=0.6,
            )  # fmt: skip
        if len(front := frontier(finished)) > 1:
            xs, ys = zip(*front, strict=True)
            drawn.add_scatter(
                x=xs, y=ys, mode="lines", name="frontier", hoverinfo="skip",
                line={"width": 1, "dash": "dot", "color": SOFT, "shape": "vh"},
            )  # fmt: skip
        methods = search.methods(finished)
        for index, method in enumerate(methods or (None,)):
            group = [record for record in finished if method in (None, search.method(record))]
            key = None if len(methods) > 1 else _colour_key(group)
            marker: dict[str, Any] = {
                "size": 11,
                "symbol": _SYMBOLS[index % len(_SYMBOLS)],
                "color": COLOURS[index % len(COLOURS)],
                "line": {"width": 0.8, "color": "white"},
            }
            if key is not None:
                marker |= {
                    "color": [record.params[key] for record in group],
                    "colorscale": SCALE,
                    "colorbar": {"title": short_names([key])[0], "thickness": 12},
                }
            name = method if len(methods) > 1 else "finished"
            _add_trials(drawn, search, group, name or "finished", marker)
        early = [record for record in trials if record.outcome != "finished"]
        for outcome in dict.fromkeys(record.outcome for record in early):
            group = [record for record in early if record.outcome == outcome]
            marker = {"size": 8, "symbol": "triangle-down-open", "color": SOFT}
            _add_trials(drawn, search, group, f"{outcome} ({len(group)})", marker, hidden=True)
        for record in shown:
            if record.kind == "reference":
                marker = {"size": 13, "symbol": "x", "color": SOFT}
                _add_trials(drawn, search, [record], trial_label(search, record), marker)
        if (zero_shot := _accuracies(search.zero_shot)) is not None:
            x, y = zero_shot
            text = f"<b>{ZERO_SHOT}</b><br>ID {x:.1f}, OOD {y:.1f}"
            drawn.add_scatter(
                x=[x], y=[y], mode="markers", name=ZERO_SHOT, hovertext=[text], hoverinfo="text",
                marker={"size": 14, "symbol": "star", "color": SOFT},
            )  # fmt: skip
        if best is not None and best in finished:
            x, y = _point(best) or (0.0, 0.0)
            drawn.add_scatter(
                x=[x], y=[y], mode="markers+text", text=[best.trial_id], textposition="top center",
                textfont={"color": BEST}, name="best", hoverinfo="skip",
                marker={"size": 20, "symbol": "circle-open", "color": BEST, "line": {"width": 2}},
            )  # fmt: skip
        return drawn

    def curves(self) -> go.Figure:
        """The objective by step: one series for each outcome, so a thousand trials stay quick.

        The last step is not joined to the rungs where these saw averaged weights or fewer images.
        """
        search, records = self.search, self.records
        metric = search.objectives[0].metric
        drawn, best = _figure("step", metric), best_trial(search, records)
        groups: dict[str, list[TrialRecord]] = {}
        for record in records:
            if record.kind == "reference":
                name = trial_label(search, record)
            elif best is not None and record.trial_id == best.trial_id:
                name = f"best: {record.trial_id}"
            else:
                name = record.outcome
            groups.setdefault(name, []).append(record)
        looks = {"finished": (COLOURS[0], "solid"), "pruned": (SOFT, "dot")}
        for name, group in groups.items():
            is_trial = group[0].kind == "trial"
            colour, dash = looks.get(
                name, (BEST if is_trial else SOFT, "solid" if is_trial else "dash")
            )
            xs: list[float | None] = []
            ys: list[float | None] = []
            texts: list[str] = []
            for record in group:
                points = [point for point in record.curve if metric in point]
                for before, point in zip([None, *points], points, strict=False):
                    # Other weights or another number of images than the report before.
                    if before and any(
                        before.get(k) != point.get(k) for k in (AVERAGED, EVAL_IMAGES)
                    ):
                        xs, ys, texts = [*xs, None], [*ys, None], [*texts, ""]
                    xs.append(point[STEP])
                    ys.append(point[metric])
                    texts.append(f"{record.trial_id}<br>step {point[STEP]:g}: {point[metric]:.4g}")
                xs, ys, texts = [*xs, None], [*ys, None], [*texts, ""]
            strong = name not in looks
            drawn.add_scatter(
                x=xs, y=ys, mode="lines+markers", name=name, hovertext=texts, hoverinfo="text",
                opacity=1 if strong else 0.55, marker={"size": 7 if strong else 5},
                line={"color": colour, "dash": dash, "width": 2.2 if strong else 1},
            )  # fmt: skip
        if (value := search.zero_shot.get(metric)) is not None:
            drawn.add_hline(
                value, line={"dash": "dash", "width": 1, "color": SOFT},
                annotation_text=ZERO_SHOT, annotation_position="bottom left",
            )  # fmt: skip
        return drawn

    def domains(self) -> go.Figure:
        """Validation accuracy by domain: zero-shot, the references, and the best trial."""
        search, records = self.search, self.records
        models = {ZERO_SHOT: search.zero_shot}
        models |= {trial_label(search, r): r.metrics for r in records if r.kind == "reference"}
        if best := best_trial(search, records):
            models[best.trial_id] = best.means
        names = [f"{search.id_domain} (ID)", *search.ood_domains]
        keys = [ID_ACC, *(val_acc(domain) for domain in search.ood_domains)]
        drawn = _figure("", "validation accuracy, %")
        colours = [SOFT, *COLOURS[1:]]
        for index, (name, metrics) in enumerate(models.items()):
            colour = BEST if best and name == best.trial_id else colours[index % len(colours)]
            drawn.add_bar(
                x=names, y=[metrics.get(key) for key in keys], name=name, marker_color=colour,
                texttemplate="%{y:.1f}", textposition="outside", cliponaxis=False,
            )  # fmt: skip
        return drawn.update_layout(barmode="group")

    def parallel(self) -> go.Figure:
        """Hyperparameters, accuracies and objective of the finished trials as parallel coordinates.

        Drawing a range on an axis leaves the trials within it. (That of Optuna has no such ranges.)
        """
        search, records = self.search, self.records
        study, metric = display_study(search, records), search.objectives[0].metric
        trials = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
        axes: list[dict[str, Any]] = []
        for key in _varied(records):
            values = [trial.params[key] for trial in trials]
            axis: dict[str, Any] = {"label": key, "values": values}
            distribution = trials[0].distributions[key]
            if isinstance(distribution, CategoricalDistribution):
                texts = [str(choice) for choice in distribution.choices]
                axis |= {"values": [texts.index(str(v)) for v in values], "ticktext": texts}
                axis["tickvals"] = list(range(len(texts)))
            elif distribution.log:  # type: ignore[attr-defined]
                low, high = math.log10(min(values)), math.log10(max(values))
                ticks = [low + (high - low) * part / 4 for part in range(5)]
                axis |= {"values": [math.log10(v) for v in values], "tickvals": ticks}
                axis["ticktext"] = [f"{10**tick:.2g}" for tick in ticks]
            axes.append(axis)
        for name, key in (("ID", ID_ACC), ("OOD", OOD_MEAN_ACC)):
            if key != metric and all(key in trial.user_attrs for trial in trials):
                axes.append({"label": name, "values": [t.user_attrs[key] for t in trials]})
        values = [trial.value for trial in trials]
        axes.append({"label": metric, "values": values})
        line = {
            "color": values,
            "colorscale": SCALE,
            "showscale": True,
            "colorbar": {"thickness": 12},
        }
        drawn = _themed(go.Figure(go.Parcoords(dimensions=axes, line=line)))
        return drawn.update_layout(margin={"l": 60, "r": 60, "t": 50, "b": 30})

    def slices(self) -> go.Figure:
        """The objective over each hyperparameter of the finished trials."""
        search, records = self.search, self.records
        study, keys = display_study(search, records), _varied(records)
        metric = search.objectives[0].metric
        drawn = visualization.plot_slice(study, params=keys, target=_objective, target_name=metric)
        colour = {"color": COLOURS[0], "showscale": False, "size": 8}
        return _themed(drawn.update_traces(marker=colour))

    def contours(self) -> go.Figure:
        """The objective over the two most important hyperparameters, interpolated.

        Of many trials, the best ones: the grid of the interpolation grows with their square.
        """
        search, records = self.search, self.records
        records = by_objectives(search, _finished(records))[:CONTOUR_TRIALS]
        study, metric = display_study(search, records), search.objectives[0].metric
        found = _importances(study, _objective)
        keys = sorted(_varied(records), key=lambda key: -found.get(key, 0.0))[:2]
        drawn = visualization.plot_contour(
            study, params=keys, target=_objective, target_name=metric
        )
        drawn.update_traces(selector={"type": "contour"}, colorscale=SCALE, reversescale=False)
        return _themed(drawn)

    def importance(self) -> go.Figure:
        """The share of the variation of ID and of OOD accuracy that each hyperparameter explains.

        Optuna's fANOVA. A sentence in place of bars for fewer than `MIN_TRIALS` finished trials.
        """
        search, records = self.search, self.records
        study, keys = display_study(search, records), _varied(records)
        drawn = _figure("share of the variation (fANOVA)", "")
        if lacks := importance_lacks(records):
            return drawn.add_annotation(text=lacks, showarrow=False, x=0.5, y=0.5, xref="paper",
                                        yref="paper")  # fmt: skip
        named = (("ID accuracy", ID_ACC), ("OOD accuracy", OOD_MEAN_ACC))
        for (name, metric), colour in zip(named, (COLOURS[0], BEST), strict=True):
            if any(metric in trial.user_attrs for trial in study.trials):
                found = _importances(study, _attribute(metric))
                drawn.add_bar(
                    x=[found.get(key, 0.0) for key in keys], y=keys, name=name,
                    orientation="h", marker_color=colour, texttemplate="%{x:.2f}",
                )  # fmt: skip
        return drawn.update_layout(barmode="group").update_yaxes(autorange="reversed")


def importance_lacks(records: Sequence[TrialRecord]) -> str | None:
    """One sentence if too few trials have finished, or too few parameters vary."""
    finished = _finished(records)
    if len(finished) < MIN_TRIALS:
        return f"Needs {MIN_TRIALS} finished trials; there are {len(finished)}."
    return None if len(_varied(records)) > 1 else "Needs two hyperparameters that vary."


def display_study(search: SearchRecord, records: Iterable[TrialRecord]) -> optuna.Study:
    """The trials as an Optuna study in memory, for its figures; values are the first objective.

    Parameters have their `short_names`.
    """
    trials = [record for record in records if record.kind == "trial" and record.params]
    keys = dict.fromkeys(key for record in trials for key in record.params)
    names = dict(zip(keys, short_names(list(keys)), strict=True))
    known = {
        names[key]: _distribution([record.params[key] for record in trials if key in record.params])
        for key in keys
    }
    objective = search.objectives[0]
    with quiet_optuna():
        study = optuna.create_study(direction="maximize" if objective.mode == "max" else "minimize")
    for record in trials:
        value, state = record.last(objective.metric), _STATES.get(record.outcome)
        if state is None or (value is None and state == TrialState.COMPLETE):
            continue
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params={names[key]: value for key, value in record.params.items()},
                distributions={names[key]: known[names[key]] for key in record.params},
                user_attrs={"trial_id": record.trial_id, **_finite(record)},
            )
        )
    return study


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """A range that holds the values, on a log scale where they span a factor of `LOG_RANGE`."""
    if any(isinstance(value, bool | str) for value in values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    log = low > 0 and high / low >= LOG_RANGE
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _finished(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.kind == "trial" and record.outcome == "finished"]


def _varied(records: Sequence[TrialRecord]) -> list[str]:
    """The short names of the parameters that all finished trials have and that vary among them."""
    every = dict.fromkeys(
        key for record in records if record.kind == "trial" for key in record.params
    )
    names = dict(zip(every, short_names(list(every)), strict=True))
    return [names[key] for key in _varied_keys(records)]


def _varied_keys(records: Iterable[TrialRecord]) -> list[str]:
    trials = _finished(records)
    keys = dict.fromkeys(key for record in trials for key in record.params)
    return [
        key
        for key in keys
        if all(key in record.params for record in trials)
        and len({record.params[key] for record in trials}) > 1
    ]


def _importances(
    study: optuna.Study, target: Callable[[optuna.trial.FrozenTrial], float]
) -> Mapping[str, float]:
    evaluator = FanovaImportanceEvaluator(max_depth=TREE_DEPTH, seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)


def _attribute(metric: str) -> Callable[[optuna.trial.FrozenTrial], float]:
    """What a target of Optuna is for a user attribute."""
    return lambda trial: float(trial.user_attrs.get(metric, float("nan")))


def _objective(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.value) if trial.value is not None else float("nan")


def _finite(record: TrialRecord) -> dict[str, float]:
    found = {metric: record.last(metric) for metric in (ID_ACC, OOD_MEAN_ACC)}
    return {metric: value for metric, value in found.items() if value is not None}


def _point(record: TrialRecord) -> tuple[float, float] | None:
    found = _finite(record)
    return (found[ID_ACC], found[OOD_MEAN_ACC]) if len(found) == 2 else None


def _accuracies(metrics: Mapping[str, float]) -> tuple[float, float] | None:
    return _point(TrialRecord("", -1, "reference", {}, curve=(metrics,)))


def _colour_key(records: Sequence[TrialRecord]) -> str | None:
    """The parameter that colours the trials of one method: the regulariser's weight, else the
    first number that varies."""
    numbers = [
        key
        for key in _varied_keys(records)
        if all(isinstance(r.params[key], int | float) for r in records)
    ]
    return next((key for key in numbers if key.endswith("reg_weight")), next(iter(numbers), None))


def _add_trials(
    drawn: go.Figure,
    search: SearchRecord,
    records: Sequence[TrialRecord],
    name: str,
    marker: Mapping[str, Any],
    *,
    hidden: bool = False,
) -> None:
    """A series of trials. The script of the page finds their rows by `customdata`."""
    if not records:
        return
    metric = search.objectives[0].metric
    texts = []
    for record in records:
        point = _point(record) or (0.0, 0.0)
        params = format_params(record.params).replace(" ", "<br>")
        value = record.last(metric)
        lines = [f"<b>{trial_label(search, record)}</b>", f"ID {point[0]:.1f}, OOD {point[1]:.1f}"]
        lines += [f"{metric} {value:.4g}"] if value is not None else []
        if record.outcome != "finished":
            lines.append(f"{record.outcome} at step {record.step}")
        if (a := record.last("line/a")) is not None:
            lines.append(f"a = {a:.2f}")
        texts.append("<br>".join([*lines, params]).removesuffix("<br>"))
    xs, ys = zip(*(_point(record) or (None, None) for record in records), strict=True)
    drawn.add_scatter(
        x=xs, y=ys, mode="markers", name=name, marker=marker, hovertext=texts, hoverinfo="text",
        customdata=[record.trial_id for record in records],
        visible="legendonly" if hidden else True,
    )  # fmt: skip


def _figure(x_title: str, y_title: str) -> go.Figure:
    return _themed(go.Figure().update_xaxes(title=x_title).update_yaxes(title=y_title))


def _themed(drawn: go.Figure) -> go.Figure:
    """Transparent, with pale lines, so that it can stand on a light and on a dark page."""
    drawn.update_layout(
        template="none", title=None, font={"family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", autosize=True,
        margin={"l": 65, "r": 20, "t": 30, "b": 50}, hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    line = {"gridcolor": "rgba(128,134,143,.22)", "zeroline": False, "linecolor": SOFT}
    return drawn.update_xaxes(**line).update_yaxes(**line, automargin=True)
