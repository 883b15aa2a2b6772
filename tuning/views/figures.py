"""The figures of a run as Plotly figures: for the page, and for notebooks as `run.plot`.

They hold every value as text on the point, so that no figure needs a second one beside it. Colours
are readable on white and on black; the page sets the rest of its theme by script.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState
from plotly.subplots import make_subplots
from rich.console import Console

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.algorithms.studies import STATES, quiet_optuna
from tuning.runs.ranking import best_finished, by_objectives, finished_trials, references
from tuning.runs.records import (
    EVAL_IMAGES,
    STEP,
    ZERO_SHOT,
    SearchRecord,
    TrialRecord,
    trial_label,
)
from tuning.views.formatting import format_metric, format_params, param_names
from tuning.views.leaderboard import report
from tuning.views.lines import accs_of, frontier, line_of

MIN_TRIALS = 15
"""Finished trials from which on importance and contours are shown: of fewer, chance decides which
hyperparameter comes first."""
NEEDS_TWO = "Needs two hyperparameters that vary."
IN_THE_MIDDLE: Any = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
CONTOUR_TRIALS = 100
TREE_DEPTH = 8
"""Of fANOVA. Full trees of 1,000 trials take 8 times as long; importance changes by 0.01."""
MAX_CHOICES = 8
"""Of a parameter whose importance is told: each choice doubles the time that fANOVA takes."""
LOG_RANGE = 10.0
"""A positive parameter whose values span this factor is drawn on a log scale."""
SMALL = 1e-3
"""Numbers below it are written as 5e-5."""
# Okabe-Ito's, distinct with every common colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800")
BEST, SOFT = "#D55E00", "#80868f"
SCALE = ((0.0, "#5c3a8c"), (0.35, "#31688e"), (0.7, "#35b779"), (1.0, "#b5c728"))
"""Viridis without its ends, which cannot be seen on black or on white."""
_GAP = (None, None, "")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "pentagon")


@dataclass(frozen=True, repr=False)
class Plots:
    """The figures of a run, which notebooks show. They are drawn anew at each call."""

    search: SearchRecord
    records: Sequence[TrialRecord]

    def _repr_html_(self) -> str:
        """The main figure and the leaderboard."""
        # The script comes from a content network, as notebooks do with Plotly's figures.
        figure = self.id_vs_ood().to_html(full_html=False, include_plotlyjs="cdn")
        # In Jupyter, a console would show what it records.
        console = Console(record=True, width=120, file=io.StringIO(), force_jupyter=False)
        console.print(report(self.search, self.records, 120))
        text = console.export_text()
        return f"{figure}<pre>{escape(text)}</pre>"

    def id_vs_ood(self) -> go.Figure:
        """ID against mean OOD accuracy of the finished trials, with their lines.

        Points of lines are measured on a sample of the images, so a trial stands beside its line.

        Trials that ended early, whose accuracies belong to another step, are hidden until their
        entry of the legend is clicked.
        """
        search, records = self.search, self.records
        drawn = _figure(
            f"ID accuracy on {search.id_domain}, %",
            f"OOD accuracy, mean of {len(search.ood_domains)}, %",
        )
        shown = [r for r in records if r.outcome != "failed" and accs_of(r) is not None]
        trials = [record for record in shown if record.kind == "trial"]
        finished = [record for record in trials if record.outcome == "finished"]
        thin = {"mode": "lines", "hoverinfo": "skip"}
        lines = [line for r in shown if r.outcome == "finished" and (line := line_of(r))]
        if lines:
            points = [point for line in lines for point in (*line, (None, None, None))]
            _, xs, ys = zip(*points, strict=True)
            look = {"width": 0.8, "color": SOFT}
            label = "zero-shot to end, on a sample"
            drawn.add_scatter(x=xs, y=ys, name=label, line=look, opacity=0.6, **thin)
        if len(front := frontier(finished)) > 1:
            xs, ys = zip(*front, strict=True)
            look = {"width": 1, "dash": "dot", "color": SOFT, "shape": "vh"}
            drawn.add_scatter(x=xs, y=ys, name="frontier", line=look, **thin)
        methods = search.methods(finished)
        edge = {"width": 0.8, "color": "white"}
        if len(methods) > 1:
            for index, method in enumerate(methods):
                group = [record for record in finished if search.method(record) == method]
                marker = {"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 11, "line": edge}
                marker["color"] = COLOURS[index % len(COLOURS)]
                _add_trials(drawn, search, group, method, marker)
        else:
            marker = {"color": COLOURS[0], "size": 11, "line": edge}
            # The weight of the regulariser, else the first number that varies.
            numbers = [
                (not key.endswith("reg_weight"), key, name)
                for key, name in _varied(finished).items()
                if all(isinstance(record.params[key], int | float) for record in finished)
            ]
            if numbers:
                _, key, name = min(numbers, key=lambda number: number[0])
                values, ticks = _scaled([record.params[key] for record in finished])
                marker |= {"color": values, "colorscale": SCALE}
                title = {"text": name, "side": "right"}  # a long name fits beside it alone
                marker["colorbar"] = {"title": title, "thickness": 12, **ticks}
            _add_trials(drawn, search, finished, "finished", marker)
        early = [record for record in trials if record.outcome != "finished"]
        for outcome in dict.fromkeys(record.outcome for record in early):
            group = [record for record in early if record.outcome == outcome]
            marker = {"size": 8, "symbol": "triangle-down-open", "color": SOFT}
            _add_trials(drawn, search, group, f"{outcome} ({len(group)})", marker, hidden=True)
        for record in references(search, records):
            if accs_of(record) is not None:
                marker = {"size": 13, "symbol": "x", "color": SOFT}
                marker |= {"size": 14, "symbol": "star"} if record.trial_id == ZERO_SHOT else {}
                _add_trials(drawn, search, [record], trial_label(record), marker)
        best = best_finished(search, records)
        if best is not None and best in finished:
            (x, y), look = accs_of(best) or (math.nan, math.nan), {"width": 2}
            drawn.add_scatter(
                x=[x], y=[y], mode="markers+text", text=[best.trial_id], textposition="top center",
                textfont={"color": BEST}, name="best", hoverinfo="skip", cliponaxis=False,
                marker={"size": 20, "symbol": "circle-open", "color": BEST, "line": look},
            )  # fmt: skip
        return drawn.update_layout(showlegend=True)  # also for the zero-shot model alone

    def curves(self) -> go.Figure:
        """The objective by step: one series for each outcome, so a thousand trials stay quick.

        The last step is not joined to the rungs where these saw averaged weights or fewer images.
        """
        search, records = self.search, self.records
        metric = search.objectives[0].metric
        drawn, best = _figure("step", metric), best_finished(search, records)
        groups: dict[str, list[TrialRecord]] = {}
        for record in records:
            name = trial_label(record) if record.kind == "reference" else record.outcome
            if best is not None and record.trial_id == best.trial_id:
                name = f"best: {record.trial_id}"
            groups.setdefault(name, []).append(record)
        looks = {"finished": (COLOURS[0], "solid"), "running": (COLOURS[2], "solid")}
        looks |= dict.fromkeys(("pruned", "failed", "stopped"), (SOFT, "dot"))
        for name, group in groups.items():
            marked = (BEST, "solid") if group[0].kind == "trial" else (SOFT, "dash")
            colour, dash = looks.get(name, marked)
            points: list[tuple[float | None, float | None, str]] = []
            for record in group:
                seen: float | None = None
                for point in record.curve:
                    now = point.get(EVAL_IMAGES)  # another number of images than before
                    points += [_GAP] if seen is not None and seen != now else []
                    seen = now
                    if (value := point.get(metric)) is not None:
                        text = f"{record.trial_id}<br>step {point[STEP]:g}: {value:.4g}"
                        points.append((point[STEP], value, text))
                points.append(_GAP)
            xs, ys, texts = zip(*points, strict=True)
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
        models = {trial_label(r): r.metrics for r in reversed(references(search, records))}
        if best := best_finished(search, records):
            models[best.trial_id] = best.metrics
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
        """Hyperparameters, accuracies and objective of the trials as parallel coordinates.

        Pruned trials, which have no last accuracies, end below those of the finished ones. Drawing
        a range on an axis leaves the trials within it. (That of Optuna has no such ranges.)
        """
        finished, pruned = self._tried
        axes: list[dict[str, Any]] = []
        for key, name in _varied(self.records).items():
            values, ticks = _scaled([record.params[key] for record in (*finished, *pruned)])
            form = ".2~e" if max(values) < SMALL else ".3~g"
            axes.append({"label": name, "values": values, "tickformat": form, **ticks})
        objective = self.search.objectives[0].metric
        labels = {ID_ACC: "ID", OOD_MEAN_ACC: "OOD"}
        labels.pop(objective, None)
        for metric, label in {**labels, objective: objective}.items():
            found = [record.last(metric) for record in finished]
            known = [value for value in found if value is not None]
            if not known or len(known) < len(found):
                continue
            low, high, text = min(known), max(known), format_metric(metric)
            axis = {"label": label, "values": known + [_foot(known) for _ in pruned]}
            marks = [low + (high - low) * part / 4 for part in range(5)] if high > low else [low]
            names = [text(mark) for mark in marks]
            if pruned:
                marks, names = [_foot(known), *marks], ["pruned", *names]
            axes.append({**axis, "tickvals": marks, "ticktext": names})
        scale: tuple[tuple[float, str], ...] = SCALE
        if pruned:
            scale = ((0, SOFT), (0.09, SOFT), *((0.1 + 0.9 * at, c) for at, c in SCALE))
        line = {"color": axes[-1]["values"] if axes else None, "colorscale": scale}
        drawn = _themed(go.Figure(go.Parcoords(dimensions=axes, line=line, labelangle=-20)))
        return drawn.update_layout(margin={"l": 60, "r": 60, "t": 70, "b": 30})

    def slices(self) -> go.Figure:
        """The objective over each hyperparameter of the finished trials.

        Pruned trials, which have no last objective, stand below them.
        """
        (finished, pruned), metric = self._tried, self.search.objectives[0].metric
        values = [value for record in finished if (value := record.last(metric)) is not None]
        varied = _varied(self.records)
        drawn = make_subplots(cols=len(varied) or 1, shared_yaxes=True, horizontal_spacing=0.04)
        round_ = {"color": COLOURS[0], "size": 8}
        low = {"color": SOFT, "size": 8, "symbol": "triangle-down-open"}
        for column, (key, name) in enumerate(varied.items(), 1):
            for label, group, ys, marker in (
                ("finished", finished, values, round_),
                ("pruned, without a last value", pruned, [_foot(values) for _ in pruned], low),
            ):
                texts = [f"{record.trial_id}<br>{format_params(record.params)}" for record in group]
                drawn.add_scatter(
                    x=[record.params[key] for record in group], y=ys, mode="markers", name=label,
                    marker=marker, hovertext=texts, hoverinfo="text", legendgroup=label,
                    showlegend=column == 1 and bool(pruned), row=1, col=column,
                )  # fmt: skip
            tried = [record.params[key] for record in (*finished, *pruned)]
            title = {"text": name, "standoff": 8}  # below ticks that are turned
            drawn.update_xaxes(title=title, automargin=True, **_axis(tried), row=1, col=column)
        return _themed(drawn.update_yaxes(title=metric, col=1))

    def contours(self) -> go.Figure:
        """The objective over the two most important hyperparameters, interpolated.

        Of many trials, the best ones: the grid of the interpolation grows with their square. A
        sentence in their place if fewer than two hyperparameters vary in them.
        """
        records = by_objectives(self.search, finished_trials(self.records))[:CONTOUR_TRIALS]
        if len(_explaining(records)) < 2:
            return _figure("", "").add_annotation(text=NEEDS_TWO, **IN_THE_MIDDLE)
        study, metric = display_study(self.search, records), self.search.objectives[0].metric
        shares = _shares(study, _explaining(records))
        names = sorted(shares, key=lambda name: -shares[name])[:2]
        drawn = visualization.plot_contour(study, params=names, target_name=metric)
        drawn.update_traces(selector={"type": "contour"}, colorscale=SCALE, reversescale=False)
        keys = {name: key for key, name in _varied(records).items()}
        for axis in (drawn.layout.xaxis, drawn.layout.yaxis):
            axis.update(_axis([record.params[keys[axis.title.text]] for record in records]))
        return _themed(drawn)

    def importance(self) -> go.Figure:
        """The share of the variation of ID and of OOD accuracy that each hyperparameter explains.

        Optuna's fANOVA. A sentence in place of bars for fewer than `MIN_TRIALS` finished trials.
        """
        study, names = self._study, _explaining(self.records)
        drawn = _figure("share of the variation (fANOVA)", "")
        if lacks := importance_lacks(self.records):
            return drawn.add_annotation(text=lacks, **IN_THE_MIDDLE)
        for label, metric, colour in (
            ("ID accuracy", ID_ACC, COLOURS[0]),
            ("OOD accuracy", OOD_MEAN_ACC, BEST),
        ):
            if any(metric in trial.user_attrs for trial in study.trials):
                shares = _shares(study, names, metric)
                drawn.add_bar(
                    x=[*shares.values()], y=names, name=label, orientation="h",
                    marker_color=colour, texttemplate="%{x:.2f}",
                )  # fmt: skip
        return drawn.update_layout(barmode="group").update_yaxes(autorange="reversed")

    @cached_property
    def _tried(self) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Finished trials with an objective, and pruned ones with the parameters of all these."""
        metric = self.search.objectives[0].metric
        finished = [r for r in finished_trials(self.records) if r.last(metric) is not None]
        pruned = [r for r in self.records if r.kind == "trial" and r.outcome == "pruned"]
        keys = _varied(self.records).keys()
        return finished, [r for r in pruned if finished and keys <= r.params.keys()]

    @cached_property
    def _study(self) -> optuna.Study:
        return display_study(self.search, self.records)


def importance_lacks(records: Sequence[TrialRecord]) -> str | None:
    """One sentence if too few trials have finished, or too few parameters vary."""
    number = len(finished_trials(records))
    if number < MIN_TRIALS:
        return f"Needs {MIN_TRIALS} finished trials; there are {number}."
    return None if len(_explaining(records)) > 1 else NEEDS_TWO


def display_study(search: SearchRecord, records: Iterable[TrialRecord]) -> optuna.Study:
    """The trials as an Optuna study in memory, for its figures; values are the first objective.

    Parameters have their `short_names`.
    """
    trials = [record for record in records if record.kind == "trial" and record.params]
    names = param_names(trials)
    ranges = {
        name: _distribution([record.params[key] for record in trials if key in record.params])
        for key, name in names.items()
    }
    objective = search.objectives[0]
    with quiet_optuna():
        study = optuna.create_study(direction="maximize" if objective.mode == "max" else "minimize")
    for record in trials:
        value, state = record.last(objective.metric), STATES[record.outcome]
        if not state.is_finished() or (value is None and state == TrialState.COMPLETE):
            continue
        params = {names[key]: value for key, value in record.params.items()}
        accs = {metric: record.last(metric) for metric in (ID_ACC, OOD_MEAN_ACC)}
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=params,
                distributions={name: ranges[name] for name in params},
                user_attrs={metric: acc for metric, acc in accs.items() if acc is not None},
            )
        )
    return study


def _scaled(values: Sequence[Any]) -> tuple[list[float], dict[str, Any]]:
    """Values of a parameter as positions on a linear axis, and the ticks there if these are odd."""
    kind = _distribution(values)
    if isinstance(kind, CategoricalDistribution):
        places = [kind.choices.index(value) for value in values]
        texts = [*map(str, kind.choices)]
        return [*map(float, places)], {"tickvals": [*range(len(texts))], "ticktext": texts}
    if not kind.log:  # type: ignore[attr-defined]
        return [*values], {}
    ticks = _log_ticks(min(values), max(values))
    found = {"tickvals": [*map(math.log10, ticks)], "ticktext": [f"{tick:g}" for tick in ticks]}
    return [math.log10(value) for value in values], found


def _axis(values: Sequence[Any]) -> dict[str, Any]:
    """Scale and ticks of an axis with the values of a parameter."""
    kind = _distribution(values)
    if isinstance(kind, CategoricalDistribution) or not kind.log:  # type: ignore[attr-defined]
        return {"nticks": 5}
    ticks = _log_ticks(min(values), max(values))
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in a range: powers of ten, or multiples of them if these are fewer than 3."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    found: list[float] = []
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        ticks = [multiple * 10.0**power for power in powers for multiple in multiples]
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) > 2:
            break
    return found


def _foot(values: Sequence[float]) -> float:
    """A place below the values, at a tenth of the whole height."""
    return min(values) - ((max(values) - min(values)) or 1.0) / 9


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """A range that holds the values, on a log scale where they span a factor of `LOG_RANGE`."""
    if any(isinstance(value, bool | str) for value in values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    log = low > 0 and high / low >= LOG_RANGE
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _varied(records: Sequence[TrialRecord]) -> dict[str, str]:
    """Key and short name of the parameters that all finished trials have and that vary."""
    finished = [record.params for record in finished_trials(records)]
    return {
        key: name
        for key, name in param_names(records).items()
        if all(key in params for params in finished)
        and len({params[key] for params in finished}) > 1
    }


def _explaining(records: Sequence[TrialRecord]) -> list[str]:
    """Short names of the varied parameters, without those of more than `MAX_CHOICES` choices."""
    finished = finished_trials(records)
    values = {name: {r.params[key] for r in finished} for key, name in _varied(records).items()}
    return [
        name
        for name, of in values.items()
        if len(of) <= MAX_CHOICES or not any(isinstance(value, bool | str) for value in of)
    ]


def _shares(study: optuna.Study, names: list[str], metric: str = "") -> dict[str, float]:
    """The share of the variation of a metric, else of the objective, that each name explains."""

    def target(trial: optuna.trial.FrozenTrial) -> float:
        return float(trial.user_attrs.get(metric, math.nan) if metric else trial.values[0])

    fanova, found = FanovaImportanceEvaluator(max_depth=TREE_DEPTH, seed=0), dict[str, float]()
    if len({target(trial) for trial in study.get_trials(states=[TrialState.COMPLETE])}) > 1:
        found = get_param_importances(study, evaluator=fanova, params=names, target=target)
    return {name: found.get(name, 0.0) for name in names}


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
    points = [accs_of(record) or (math.nan, math.nan) for record in records]
    texts = []
    for record, (x, y) in zip(records, points, strict=True):
        lines = [f"<b>{trial_label(record)}</b>", f"ID {x:.1f}, OOD {y:.1f}"]
        if (value := record.last(metric)) is not None:
            lines.append(f"{metric} {value:.4g}")
        if record.outcome != "finished":
            lines.append(f"{record.outcome} at step {record.step}")
        if (a := record.last("line/a")) is not None:
            lines.append(f"a = {a:.2f}")
        texts.append("<br>".join([*lines, *format_params(record.params).split()]))
    drawn.add_scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="markers", name=name,
        marker=marker, hovertext=texts, hoverinfo="text",
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
    line["exponentformat"] = "e"  # not 10µ
    return drawn.update_xaxes(**line).update_yaxes(**line, automargin=True)
