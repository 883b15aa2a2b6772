"""The pages of MLflow on a search: its trials, best first, and its description.

MLflow opens an experiment with names, dates and durations. A shared view, which its *Share* button
makes, opens it with other columns, order and filter. It is a tag of the experiment,
`mlflow.sharedViewState.KEY`, and an address that ends in `viewStateShareKey=KEY`. The tag holds
`deflate;` and the base64 of the compressed JSON, as MLflow 3.17's pages read it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.ranking import best_trial
from tuning.runs.records import SECONDS, TRAIN_LOSS, ZERO_SHOT, SearchRecord, TrialRecord
from tuning.views.formatting import format_outcomes, format_params, format_percent, trial_label
from tuning.views.mlflow.client import key_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def main_metrics(search: SearchRecord) -> tuple[str, ...]:
    """The metrics to look at first, in the order of the columns."""
    names = [ID_ACC, OOD_MEAN_ACC, MEAN_ACC]
    if search.configured("trial", "eval", "line") not in (None, "off"):
        names.append("line/a")
    names += [o.metric for o in (*search.objectives, *search.sampler_objectives)]
    names += [constraint.metric for constraint in search.constraints]
    names += [val_acc(domain) for domain in search.ood_domains]
    names += [TRAIN_LOSS, "train/lr", "train/images_per_s", SECONDS]
    return tuple(dict.fromkeys(names))


def order_key(search: SearchRecord) -> str:
    """The metric that orders the view: the objective of a finished trial that can be chosen.

    It is NaN for other finished runs, which come next, and missing for the rest.
    """
    return key_of(f"final/{search.objectives[0].metric}")


def share_view(
    client: MlflowClient, experiment_id: str, search: SearchRecord, records: Sequence[TrialRecord]
) -> None:
    """Store the view of a search: columns of ID and OOD accuracy, objectives and parameters."""
    params = dict.fromkeys(key for record in records for key in record.params)
    main = [name for name in main_metrics(search) if not name.startswith(("train/", "cost/"))]
    columns = [f"metrics.`{key_of(name)}`" for name in (*main, SECONDS)]
    columns[3:3] = ["tags.`outcome`", *(f"params.`{key_of(name)}`" for name in params)]
    state = {
        "searchFilter": f"tags.search_id = '{search.run_id}' and tags.kind != 'search'",
        "orderByKey": f"metrics.`{order_key(search)}`",
        "orderByAsc": search.objectives[0].mode == "min",
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", *columns, "runDateAndNestInfo"],
        "columnWidths": {"attributes.`Run Name`": 330},  # pixels
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    tag = f"mlflow.sharedViewState.{_key(search)}"
    client.set_experiment_tag(experiment_id, tag, f"deflate;{packed}")


def view_path(experiment_id: str, search: SearchRecord) -> str:
    """The part of the view's address after that of the server."""
    query = f"workflowType=machine_learning&viewStateShareKey={_key(search)}"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _key(search: SearchRecord) -> str:
    return hashlib.sha256(search.run_id.encode()).hexdigest()[:16]


def describe(search: SearchRecord, records: Sequence[TrialRecord], outcome: str) -> str:
    """What was found and how, in Markdown. MLflow 3.17 hides all but the first 150 pixels."""
    best = best_trial(search, records) if outcome != "running" else None
    lines = [f"**Best: {best.trial_id}** with {format_params(best.params)}."] if best else []
    shown = [r for r in records if r.kind == "reference" and r.outcome == "finished"]
    compared = [(trial_label(search, r), r.means) for r in ([best] if best else []) + shown]
    for name, metrics in (*compared, (ZERO_SHOT, search.zero_shot)):
        id_acc, ood_acc = (format_percent(metrics.get(metric)) for metric in (ID_ACC, OOD_MEAN_ACC))
        lines.append(f"- {name}: {id_acc} ID, {ood_acc} OOD")
    found = format_outcomes(records) or "none yet"
    lines += ["", f"Search {outcome}. Trials: {found}. {search.selection}"]
    return "\n".join(lines)
