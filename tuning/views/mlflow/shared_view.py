"""The pages of MLflow on a search: its trials, best first, and its description.

MLflow opens an experiment with names, dates and durations. A shared view, which its *Share* button
makes, opens it with other columns, order and filter. It is a tag of the experiment,
`mlflow.sharedViewState.KEY`, and an address that ends in `viewStateShareKey=KEY`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC, val_acc
from tuning.log.records import SECONDS, TRAIN_LOSS, TrialRecord
from tuning.run import Run
from tuning.views.mlflow.client import key_of

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

_PAGES = "workflowType=machine_learning"
"""MLflow 3.17 shows the menu for language models without it."""


def main_metrics(run: Run) -> tuple[str, ...]:
    """The metrics to look at first, in the order of the columns."""
    names = [ID_ACC, OOD_MEAN_ACC, MEAN_ACC]
    if run.file.trial.eval.line != "off":
        names.append("line/a")
    names += [o.metric for o in (*run.goal.objectives, *run.goal.sampler_objectives)]
    names += [constraint.metric for constraint in run.goal.constraints]
    names += [val_acc(domain) for domain in run.goal.ood_domains]
    names += [TRAIN_LOSS, "train/lr", "train/images_per_s", SECONDS]
    return tuple(dict.fromkeys(names))


def order_of(
    run: Run,
    record: TrialRecord,
    missed: Mapping[str, float],
    position: int = 0,
    confirmed: Sequence[str] = (),
) -> str:
    """The tag by which the view sorts runs: finished trials, references, trials that miss a
    constraint, those not at their end, failed ones. Within these, the order of `ranked`.

    MLflow sorts by one key, and tags as text: what is better has smaller numbers of fixed width.

    Args:
        missed: amounts by which the trial misses constraints.
        position: in `ranked`, which replaces the objective if there are several.
        confirmed: what `confirm` has trained, best first: these trials come before all others.
    """
    if record.trial_id in confirmed and record.kind == "trial":
        return f"0 {confirmed.index(record.trial_id):06d}"
    if record.outcome != "finished":
        group = 5 if record.outcome == "failed" else 4
    elif record.kind == "reference":
        group = 2
    else:
        group = 3 if missed else 1
    value = record.last(run.goal.objectives[0].metric)
    if len(run.goal.objectives) > 1:
        merit: float = -position
    else:
        merit = -math.inf if value is None else run.goal.objectives[0].signed(value)
    # Of equal trials, the earlier one comes first.
    merits = (record.step, -sum(missed.values()), merit, -record.number)
    return " ".join([str(group), *(f"{1e9 - min(max(m, -1e9), 1e9):017.6f}" for m in merits)])


def share_view(client: MlflowClient, experiment_id: str, run: Run) -> None:
    """Store the view of a search: columns of ID and OOD accuracy, objectives and parameters."""
    params = dict.fromkeys(key for record in run.records for key in record.params)
    main = [name for name in main_metrics(run) if not name.startswith(("train/", "cost/"))]
    columns = [f"metrics.`{key_of(name)}`" for name in (*main, SECONDS)]
    columns[3:3] = ["tags.`outcome`", *(f"params.`{key_of(name)}`" for name in params)]
    state = {
        "searchFilter": f"tags.search_id = '{run.history.run_id}' and tags.kind != 'search'",
        "orderByKey": "tags.`order`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns],
        # In pixels. MLflow 3.17 pins the column *Created*, of which the mark of the outcome is
        # left; then ID, OOD and mean accuracy fit beside its two panels on a screen of 1280.
        "columnWidths": {"attributes.`Run Name`": 200, "runDateAndNestInfo": 46},
    }
    tag = f"mlflow.sharedViewState.{run.history.run_id}"
    client.set_experiment_tag(experiment_id, tag, json.dumps(state))


def view_path(experiment_id: str, run: Run) -> str:
    """The part of the view's address after that of the server."""
    return f"/#/experiments/{experiment_id}/runs?{_PAGES}&viewStateShareKey={run.history.run_id}"


def summary_path(experiment_id: str, run: MlflowRun) -> str:
    """The same of the parent run of a search: its report, which it gets at the end."""
    tab = "" if run.info.status == "RUNNING" else "/artifacts/index.html"
    return f"/#/experiments/{experiment_id}/runs/{run.info.run_id}{tab}?{_PAGES}"
