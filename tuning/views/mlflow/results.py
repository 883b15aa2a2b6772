"""What is computed after a search, as runs below its parent run: confirmations and soups.

| run | tags | metrics |
|---|---|---|
| `confirm TRIAL` | kind = `confirm`, confirms, method, labels, seeds, looks_at_ood, ... | test \
splits, ID and mean OOD of validation, costs: mean, `sd/...`, `vs_ft/...`, `vs_zero_shot/...` |
| `RECIPE soup` | kind = `soup`, soup, trials, of_trials, looks_at_ood, ... | validation splits, \
under the names that trials have |

The step of a metric is the number of seeds, or the last step of the soup's ingredients. Results
that MLflow has already are not logged again. A failure is a warning: the results are in the run
folder.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, MetricKey
from trainers.redact import redact
from tuning.confirmation.results import END, FT, SPLIT, Confirmation
from tuning.runs.records import SearchRecord
from tuning.views.html_report import REPORT_FILE, REPORT_FOLDER
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import PARENT_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from tuning.weights.soup import FinishedSoup

logger = logging.getLogger(__name__)

COSTS = ("cost/seconds", "cost/gpu_seconds", "cost/cpu_seconds")


def log_confirmation(tracking_uri: str, experiment: str, confirmation: Confirmation) -> None:
    """Write each confirmed configuration below the search's run, and upload the report there.

    The values are means over all seeds so far, of this call and earlier ones, as in the report.
    MLflow shows the value of the highest step, which would stay that of an earlier call with more.
    """
    stored = sorted({seed for _, seed in confirmation.results if seed is not None})
    confirmation = replace(confirmation, seeds=tuple(stored))

    def write(client: MlflowClient, parent: Run) -> None:
        for configuration in confirmation.configurations:
            name = configuration.trial_id
            metrics = _confirmed_metrics(confirmation, name)
            if not metrics:
                continue
            seeds = [str(s) for s in confirmation.seeds if (name, s) in confirmation.results]
            tags = {
                "kind": "confirm",
                "confirms": name,
                "labels": ", ".join(configuration.labels),
                "seeds": ", ".join(seeds),
                "looks_at_ood": str(configuration.looks_at_ood).lower(),
            }
            if configuration.method is not None:
                tags["method"] = configuration.method
            earlier = mlf.runs_below(
                client, parent.info.experiment_id, parent.info.run_id, f"tags.confirms = '{name}'"
            )
            # The differences change, too, when a later call adds seeds of what it is compared with.
            if any(
                run.data.tags.get("seeds") == tags["seeds"] and metrics == run.data.metrics
                for run in earlier
            ):
                continue
            run_id = str(earlier[0].info.run_id) if earlier else None  # of fewer or other seeds
            params = {key: value for key, value in configuration.params.items() if key != "seed"}
            _log(client, parent, f"confirm {name}", tags, metrics, len(seeds), params, run_id)
        report = confirmation.search.run_folder / REPORT_FOLDER / REPORT_FILE
        if report.is_file():
            client.log_artifact(str(parent.info.run_id), str(report))

    _below_search(tracking_uri, experiment, confirmation.search, "the confirmation", write)


def log_soup(tracking_uri: str, experiment: str, finished: FinishedSoup) -> None:
    """Write a soup below the search's run; the same recipe of other trials has another run."""
    search = finished.search

    def write(client: MlflowClient, parent: Run) -> None:
        tags = {
            "kind": "soup",
            "soup": finished.recipe,
            "trials": ", ".join(record.trial_id for record in finished.used),
            "of_trials": ", ".join(i.record.trial_id for i in finished.ingredients),
            "looks_at_ood": str(search.sees_ood).lower(),
        }
        same = f"tags.soup = '{finished.recipe}'"
        earlier = mlf.runs_below(client, parent.info.experiment_id, parent.info.run_id, same)
        if not any(run.data.tags.get("of_trials") == tags["of_trials"] for run in earlier):
            metrics = finished.soup.metrics
            _log(client, parent, f"{finished.recipe} soup", tags, metrics, search.total_steps)

    _below_search(tracking_uri, experiment, search, "the soup", write)


def _below_search(
    tracking_uri: str,
    experiment: str,
    search: SearchRecord,
    what: str,
    write: Callable[[MlflowClient, Run], None],
) -> None:
    """Write below the parent run of a search; what goes wrong is a warning."""
    try:
        client, experiment_id = mlf.connect(tracking_uri, experiment)
        with mlf.brief_requests():
            parent = mlf.search_run(client, experiment_id, search.run_id)
            if parent is None:
                raise LookupError(
                    f"it has no run of this search; `lipsum-tune report {search.run_folder}` "
                    "writes one"
                )
            write(client, parent)
    except Exception as error:
        logger.warning(
            "MLflow at %s does not have %s: %s",
            redact(tracking_uri),
            what,
            mlf.reason_of(error, tracking_uri),
        )


def _log(
    client: MlflowClient,
    parent: Run,
    title: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    step: int,
    params: Mapping[str, object] | None = None,
    run_id: str | None = None,
) -> None:
    """Write a finished run below the parent, into an earlier one if its ID is given."""
    tags = {
        PARENT_TAG: str(parent.info.run_id),
        "search": parent.data.tags["search"],
        "outcome": "finished",
        **tags,
    }
    if run_id is None:
        run = client.create_run(parent.info.experiment_id, tags=tags, run_name=title)
        run_id = str(run.info.run_id)
    logged = mlf.metrics_of(metrics, step, time.time_ns() // 1_000_000)
    mlf.log(client, run_id, logged, mlf.params_of(params or {}), mlf.tags_of(tags))
    client.set_terminated(run_id)


def _confirmed_metrics(confirmation: Confirmation, trial_id: str) -> dict[str, float]:
    """Mean and standard deviation of each metric over the seeds, and its paired differences."""
    found: dict[str, float] = {}
    names = {n for key, r in confirmation.results.items() if key[0] == trial_id for n in r.metrics}
    search = confirmation.search
    chosen_by = {o.metric for o in search.objectives} | {c.metric for c in search.constraints}
    for name in sorted(names):
        key = MetricKey.parse(name.removeprefix(END))
        is_test = key is not None and key.split == SPLIT
        if not is_test and name not in {ID_ACC, OOD_MEAN_ACC, "line/a", *COSTS, *chosen_by}:
            continue
        estimates = {"vs_zero_shot": confirmation.against_zero_shot(trial_id, name)}
        if trial_id != FT:
            estimates["vs_ft"] = confirmation.against(FT, trial_id, name)
        own = confirmation.estimate(trial_id, name)
        if own is not None:
            found |= {name: own.mean, f"sd/{name}": own.sd}
            found |= {f"{against}/{name}": e.mean for against, e in estimates.items() if e}
    return {name: value for name, value in found.items() if math.isfinite(value)}
