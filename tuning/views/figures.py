"""The figures of a run as Plotly figures: ID against OOD accuracy, and Optuna's.

Colours are readable on white and on black; the page sets the rest of its theme by script.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from search_spaces.distributions import Categorical, Distribution
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.algorithms.studies import quiet_optuna
from tuning.log.records import ZERO_SHOT, TrialRecord, trial_label
from tuning.results.ranking import finished_trials, non_dominated, ranked, references
from tuning.results.rules import methods_of
from tuning.run import Run
from tuning.views.dashboard import study_of
from tuning.views.formatting import format_params
from tuning.views.leaderboard import report

MIN_TRIALS = 15
"""Finished trials from which on importance is shown: of fewer, chance decides which hyperparameter
comes first."""
MAX_CHOICES = 8
"""Of a parameter whose importance is told: each choice doubles the time that fANOVA takes."""
MAX_CURVES = 100
"""Of the best trials: Optuna draws each as a series of its own."""
TREE_DEPTH = 8
"""Of fANOVA. Full trees of 1,000 trials take 8 times as long; importance changes by 0.01."""
# Okabe-Ito's, distinct with every common colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800")
BEST, SOFT = "#D55E00", "#80868f"
SCALE = ((0.0, "#5c3a8c"), (0.35, "#31688e"), (0.7, "#35b779"), (1.0, "#b5c728"))
"""Viridis without its ends, which cannot be seen on black or on white."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "pentagon")
_EDGE = {"width": 0.8, "color": "white"}
_THIN = {"mode": "lines", "hoverinfo": "skip"}
_POINT = re.compile(rf"line/([^/]+)/{ID_ACC}")


@dataclass(frozen=True, repr=False)
class Plots:
    """The figure of a run, which notebooks show. `optuna.visualization` draws others of
    `run.study`."""

    run: Run

    def _repr_html_(self) -> str:
        """The figure and the leaderboard."""
        # The script comes from a content network, as notebooks do with Plotly's figures.
        figure = self.id_vs_ood().to_html(full_html=False, include_plotlyjs="cdn")
        # In Jupyter, a console would show what it records.
        console = Console(record=True, width=120, file=io.StringIO(), force_jupyter=False)
        console.print(report(self.run, 120))
        text = console.export_text()
        return f"{figure}<pre>{escape(text)}</pre>"

    def id_vs_ood(self) -> go.Figure:
        """ID against mean OOD accuracy of the finished trials, with their lines.

        Points of lines are measured on a sample of the images, so a trial stands beside its line.

        Trials that ended early, whose accuracies belong to another step, are hidden until their
        entry of the legend is clicked.
        """
        run = self.run
        drawn = _themed(go.Figure())
        drawn.update_xaxes(title=f"ID accuracy on {run.file.trial.data.id_domain}, %")
        drawn.update_yaxes(title=f"OOD accuracy, mean of {len(run.goal.ood_domains)}, %")
        shown = [r for r in run.records if r.outcome != "failed" and accs_of(r) is not None]
        finished = finished_trials(shown)
        _add_lines(drawn, [r for r in shown if r.outcome == "finished"])
        _add_frontier(drawn, finished)
        methods = methods_of(finished)
        look: dict[str, Any] = {"size": 11, "line": _EDGE}
        if len(methods) < 2:
            colours = _colours(run, finished) or {"color": COLOURS[0]}
            _add_trials(drawn, run, finished, "finished", look | colours)
        else:
            for method, colour, symbol in zip(methods, cycle(COLOURS), cycle(_SYMBOLS)):
                group = [record for record in finished if record.method == method]
                _add_trials(
                    drawn, run, group, str(method), look | {"color": colour, "symbol": symbol}
                )
        early = [r for r in shown if r.kind == "trial" and r.outcome != "finished"]
        for outcome in dict.fromkeys(record.outcome for record in early):
            group = [record for record in early if record.outcome == outcome]
            look = {"size": 8, "symbol": "triangle-down-open", "color": SOFT}
            _add_trials(drawn, run, group, f"{outcome} ({len(group)})", look, hidden=True)
        for record in references(run.goal, run.records):
            if accs_of(record) is not None:
                symbol = "star" if record.trial_id == ZERO_SHOT else "x"
                look = {"size": 13, "symbol": symbol, "color": SOFT}
                _add_trials(drawn, run, [record], trial_label(record), look)
        best = run.conclusion.best
        if best is not None and (accs := accs_of(best)):
            drawn.add_scatter(
                x=accs[:1], y=accs[1:], mode="markers+text", text=[trial_label(best)],
                textposition="top center", textfont={"color": BEST}, name="best",
                hoverinfo="skip", cliponaxis=False,
                marker={
                    "size": 20, "symbol": "circle-open", "color": BEST, "line": {"width": 2}
                },
            )  # fmt: skip
        return drawn.update_layout(showlegend=True)  # also for the zero-shot model alone


def optuna_figures(run: Run) -> dict[str, go.Figure]:
    """What Optuna draws of the trials that have ended: `slices`, `curves`, and importance by ID and
    by OOD accuracy, as far as there are trials for it."""
    objective, drawn = run.goal.objectives[0], dict[str, go.Figure]()
    with quiet_optuna():
        study = study_of(run, run.records)
        trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(trials) < 2:
            return {}
        drawn["slices"] = visualization.plot_slice(
            study, target=lambda trial: trial.values[0], target_name=objective.metric
        )
        if any(len(trial.intermediate_values) > 1 for trial in trials):
            best = study_of(run, ranked(run.goal, run.records)[:MAX_CURVES])
            drawn["curves"] = visualization.plot_intermediate_values(best)
        names = _explaining(trials)
        for what, metric in (("ID", ID_ACC), ("OOD", OOD_MEAN_ACC)):
            values = {trial.user_attrs.get(metric) for trial in trials}
            is_known = len(values) > 1 and None not in values
            if len(trials) >= MIN_TRIALS and len(names) > 1 and is_known:
                drawn[f"importance_{what}"] = visualization.plot_param_importances(
                    study,
                    evaluator=FanovaImportanceEvaluator(max_depth=TREE_DEPTH, seed=0),
                    params=names,
                    target=partial(_measured, metric),
                    target_name=f"{what} accuracy",
                )
    return {name: _themed(figure.update_layout(width=None)) for name, figure in drawn.items()}


def _measured(metric: str, trial: FrozenTrial) -> float:
    return float(trial.user_attrs[metric])


def _explaining(trials: Sequence[FrozenTrial]) -> list[str]:
    """Parameters that all trials have and that vary, without those of many choices."""
    found = []
    for name, distribution in trials[0].distributions.items():
        values = {trial.params.get(name) for trial in trials}
        is_choice = isinstance(distribution, CategoricalDistribution)
        if 1 < len(values) <= (MAX_CHOICES if is_choice else len(trials)) and None not in values:
            found.append(name)
    return found


def accs_of(record: TrialRecord) -> tuple[float, float] | None:
    """ID and mean OOD accuracy in percent at the last report; None if one is missing."""
    id_acc, ood_acc = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return None if id_acc is None or ood_acc is None else (id_acc, ood_acc)


def line_of(record: TrialRecord) -> list[tuple[float, float, float]]:
    """Point, ID and mean OOD accuracy in percent of each measured point of a trial's line."""
    points = []
    for name in record.metrics:
        if match := _POINT.fullmatch(name):
            accs = record.last(name), record.last(f"line/{match[1]}/{OOD_MEAN_ACC}")
            if accs[0] is not None and accs[1] is not None:
                points.append((float(match[1]), accs[0], accs[1]))
    return sorted(points)


def _add_lines(drawn: go.Figure, finished: Sequence[TrialRecord]) -> None:
    """The lines of all trials as one series with gaps."""
    points: list[tuple[float | None, ...]] = []
    for record in finished:
        points += [*line_of(record), (None, None, None)]
    if any(point[0] is not None for point in points):
        _, xs, ys = zip(*points, strict=True)
        look = {"width": 0.8, "color": SOFT}
        name = "zero-shot to end, on a sample"
        drawn.add_scatter(x=xs, y=ys, name=name, line=look, opacity=0.6, **_THIN)


def _add_frontier(drawn: go.Figure, finished: Sequence[TrialRecord]) -> None:
    """The finished trials to which none is better in both accuracies."""
    points = sorted({accs for record in finished if (accs := accs_of(record))})
    front = [points[index] for index in non_dominated(points)]
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        look = {"width": 1, "dash": "dot", "color": SOFT, "shape": "vh"}
        drawn.add_scatter(x=xs, y=ys, name="frontier", line=look, **_THIN)


def _colours(run: Run, finished: Sequence[TrialRecord]) -> dict[str, Any]:
    """The colour of each trial by the weight of its regulariser, else its first number."""
    method = finished[0].method if finished else None
    part = run.file.spaces.get(method) or run.file.spaces.get(None)
    numbers: dict[str, Distribution] = {}
    for key, of in part.parameters.items() if part else ():
        if not isinstance(of, Categorical) and len({r.params.get(key) for r in finished}) > 1:
            numbers[key] = of
    if not numbers:
        return {}
    key = min(numbers, key=lambda key: not key.endswith("reg_weight"))
    scale: Any = numbers[key]
    ticks = [0, 0.25, 0.5, 0.75, 1]
    title = {"text": key.rpartition(".")[2], "side": "right"}  # a long name fits beside it alone
    texts = [f"{scale.at(tick):.2g}" for tick in ticks]
    bar = {"title": title, "thickness": 12, "tickvals": ticks, "ticktext": texts}
    colours = [scale.unit(float(record.params[key])) for record in finished]
    return {"color": colours, "cmin": 0, "cmax": 1, "colorscale": SCALE, "colorbar": bar}


def _add_trials(
    drawn: go.Figure,
    run: Run,
    records: Sequence[TrialRecord],
    name: str,
    marker: Mapping[str, Any],
    *,
    hidden: bool = False,
) -> None:
    """A series of trials. The script of the page finds their rows by `customdata`."""
    if not records:
        return
    metric = run.goal.objectives[0].metric
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
