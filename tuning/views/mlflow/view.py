"""The page of MLflow that shows a search: its trials, best first, with ID and OOD accuracy.

MLflow opens an experiment with names, dates and durations. A shared view, which its *Share* button
makes, opens it with other columns, order, filter and charts. It is a tag of the experiment,
`mlflow.sharedViewState.KEY`, and an address that ends in `viewStateShareKey=KEY`. The tag holds
`deflate;` and the base64 of the compressed JSON, as MLflow 3.17's pages read it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any

from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.records import SECONDS, TRAIN_LOSS, SearchRecord
from tuning.views.mlflow.client import keys_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.tracking import MlflowClient

_TAG = "mlflow.sharedViewState."


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


def share_view(
    client: MlflowClient, experiment_id: str, search: SearchRecord, params: Sequence[str]
) -> None:
    """Store the view of a search. Its columns are ID and OOD accuracy, objectives and `params`."""
    text = json.dumps(_state(search, params), separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    client.set_experiment_tag(experiment_id, f"{_TAG}{_key(search)}", f"deflate;{packed}")


def view_path(experiment_id: str, search: SearchRecord) -> str:
    """The part of the view's address after that of the server."""
    query = f"workflowType=machine_learning&viewStateShareKey={_key(search)}"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _key(search: SearchRecord) -> str:
    return hashlib.sha256(search.run_id.encode()).hexdigest()[:16]


def _state(search: SearchRecord, params: Sequence[str]) -> dict[str, Any]:
    first = search.objectives[0]
    keys = keys_of(main_metrics(search))
    objective = keys[first.metric]
    metrics = [key for key in keys.values() if not key.startswith(("train/", "cost/", "eval/"))]
    is_domain = {keys[val_acc(domain)] for domain in search.ood_domains}
    columns = [f"metrics.`{name}`" for name in metrics if name not in is_domain]
    columns.insert(3, "tags.`outcome`")  # after ID, OOD and their mean
    columns += [f"params.`{name}`" for name in params]
    columns += [f"metrics.`{name}`" for name in metrics if name in is_domain]
    # In pixels. The head of a column shows the name of the metric or parameter.
    widths = {column: 28 + 7 * len(column.split("`")[1]) for column in columns}
    run_name, created = "attributes.`Run Name`", "runDateAndNestInfo"
    overview = "lipsum-tune-overview"
    charts = [
        _chart("SCATTER", overview, "ID and OOD accuracy", xaxis=_metric(ID_ACC),
               yaxis=_metric(OOD_MEAN_ACC), runsCountToCompare=100),
        _chart("PARALLEL", overview, "Parameters and objective", selectedParams=list(params),
               selectedMetrics=[objective], showAllRuns=True),
        _chart("BAR", overview, objective, metricKey=objective, runsCountToCompare=20),
    ]  # fmt: skip
    if len(params) > 1:
        x, y = ({"key": name, "type": "PARAM"} for name in (params[0], params[-1]))
        charts.append(
            _chart("CONTOUR", overview, f"{objective} over two parameters", xaxis=x, yaxis=y,
                   zaxis=_metric(objective), reverseScale=False)
        )  # fmt: skip
    return {
        "searchFilter": f"tags.search_id = '{search.run_id}' and tags.kind != 'search'",
        "orderByKey": f"metrics.`{objective}`",
        "orderByAsc": first.mode == "min",
        "selectedColumns": [*columns, f"metrics.`{SECONDS}`"],
        "columnOrder": [run_name, *columns, f"metrics.`{SECONDS}`", created],
        "columnWidths": widths | {run_name: 330, created: 125},
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": overview,
                "name": "Overview",
                "display": True,
                "isReordered": True,
                "columns": 2,
            }
        ],
        "isAccordionReordered": True,  # the other sections come after this one
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
    }


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _chart(kind: str, section: str, title: str, **settings: Any) -> dict[str, Any]:
    identity = {"uuid": f"{section}-{kind.lower()}", "metricSectionId": section}
    state = {"deleted": False, "isGenerated": False, "displayName": title}
    return {"type": kind, **identity, **state, **settings}
