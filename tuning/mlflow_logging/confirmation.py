"""A confirmation in MLflow: one run a configuration, below the search's own.

| what | holds |
|---|---|
| tags | search, kind = `confirm`, confirms (the trial), method, labels, seeds, looks_at_ood, ... |
| metrics | each of the test splits, and costs: mean, `sd/...`, `vs_ft/...`, `vs_zero_shot/...` |

The step of a metric is the number of seeds. What went wrong is a warning, never an error: the
results are in the run folder.
"""

from __future__ import annotations

import logging
import math
import time

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tuning.confirmation.results import FT, Configuration, Confirmation
from tuning.mlflow_logging import client as mlf
from tuning.security.redaction import redact

logger = logging.getLogger(__name__)
_PARENT = "mlflow.parentRunId"


def log_confirmation(tracking_uri: str, experiment: str, confirmation: Confirmation) -> None:
    """Write what was confirmed below the search's run; what MLflow has already is left alone.

    Args:
        tracking_uri: of the search.
        experiment: of the search.
        confirmation: what to write.
    """
    try:
        client, experiment_id = mlf.connect(tracking_uri, experiment)
        with mlf.brief_requests():
            parent = mlf.search_run(client, experiment_id, confirmation.search.run_folder)
            if parent is None:
                return  # a search that MLflow never heard of
            for configuration in confirmation.configurations:
                _log(client, experiment_id, parent, confirmation, configuration)
    except Exception as error:
        logger.warning(
            "MLflow at %s does not have the confirmation: %s",
            redact(tracking_uri),
            redact(str(error), tracking_uri).strip().partition("\n")[0][:300],
        )


def _log(
    client: MlflowClient,
    experiment_id: str,
    parent: Run,
    confirmation: Confirmation,
    configuration: Configuration,
) -> None:
    name = configuration.trial_id
    metrics = _metrics(confirmation, name)
    if not metrics:
        return
    seeds = [str(s) for s in confirmation.seeds if (name, s) in confirmation.results]
    tags = {
        _PARENT: str(parent.info.run_id),
        "search": confirmation.search.name,
        "kind": "confirm",
        "confirms": name,
        "labels": ", ".join(configuration.labels),
        "seeds": ", ".join(seeds),
        "looks_at_ood": str(configuration.looks_at_ood).lower(),
        "outcome": "finished",
    }
    if configuration.method is not None:
        tags["method"] = configuration.method
    same = f"tags.`{_PARENT}` = '{parent.info.run_id}' and tags.kind = 'confirm'"
    earlier = client.search_runs([experiment_id], f"{same} and tags.confirms = '{name}'")
    if any(run.data.tags.get("seeds") == tags["seeds"] for run in earlier):
        return
    if earlier:
        run_id = str(earlier[0].info.run_id)
    else:
        run = client.create_run(experiment_id, tags=tags, run_name=f"confirm {name}")
        run_id = str(run.info.run_id)
    logged, _ = mlf.metrics_of(metrics, len(seeds), time.time_ns() // 1_000_000)
    params = {key: value for key, value in configuration.params.items() if key != "seed"}
    mlf.log(client, run_id, logged, mlf.params_of(params), mlf.tags_of(tags))
    client.set_terminated(run_id)


def _metrics(confirmation: Confirmation, trial_id: str) -> dict[str, float]:
    found: dict[str, float] = {}
    names = {n for key, r in confirmation.results.items() if key[0] == trial_id for n in r.metrics}
    for name in sorted(names):
        estimates = {"vs_zero_shot": confirmation.against_zero_shot(trial_id, name)}
        if trial_id != FT:
            estimates["vs_ft"] = confirmation.against_ft(trial_id, name)
        own = confirmation.estimate(trial_id, name)
        if own is not None:
            found |= {name: own.mean, f"sd/{name}": own.sd}
            found |= {f"{against}/{name}": e.mean for against, e in estimates.items() if e}
    return {name: value for name, value in found.items() if math.isfinite(value)}
