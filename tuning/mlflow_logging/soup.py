"""A model soup in MLflow: a run below the search's own.

| what | holds |
|---|---|
| tags | search, kind = `soup`, soup (its recipe), trials, of_trials, looks_at_ood, outcome |
| metrics | of the validation splits, under the names that trials have |

The step of a metric is that of the ingredients' last. The same soup is logged once; one of other
ingredients has another run. What went wrong is a warning: the soup is in the run folder.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tuning.mlflow_logging import client as mlf
from tuning.security.redaction import redact

if TYPE_CHECKING:
    from tuning.weights.soup import FinishedSoup

logger = logging.getLogger(__name__)
_PARENT = "mlflow.parentRunId"


def log_soup(tracking_uri: str, experiment: str, finished: FinishedSoup) -> None:
    """Write a soup below the search's run.

    Args:
        tracking_uri: of the search.
        experiment: of the search.
        finished: what to write.
    """
    try:
        _log(tracking_uri, experiment, finished)
    except Exception as error:
        logger.warning(
            "MLflow at %s does not have the soup: %s",
            redact(tracking_uri),
            redact(str(error), tracking_uri).strip().partition("\n")[0][:300],
        )


def _log(tracking_uri: str, experiment: str, finished: FinishedSoup) -> None:
    search = finished.search
    client, experiment_id = mlf.connect(tracking_uri, experiment)
    with mlf.brief_requests():
        parent = mlf.search_run(client, experiment_id, search.run_folder)
        if parent is None:
            return  # a search that MLflow never heard of
        tags = {
            _PARENT: str(parent.info.run_id),
            "search": search.name,
            "kind": "soup",
            "soup": finished.recipe,
            "trials": ", ".join(record.trial_id for record in finished.used),
            "of_trials": ", ".join(i.record.trial_id for i in finished.ingredients),
            "looks_at_ood": str(search.sees_ood).lower(),
            "outcome": "finished",
        }
        same = f"tags.`{_PARENT}` = '{parent.info.run_id}' and tags.kind = 'soup'"
        earlier = client.search_runs([experiment_id], f"{same} and tags.soup = '{tags['soup']}'")
        if any(run.data.tags.get("of_trials") == tags["of_trials"] for run in earlier):
            return
        run = client.create_run(experiment_id, tags=tags, run_name=f"{finished.recipe} soup")
        metrics, _ = mlf.metrics_of(
            finished.soup.metrics, search.total_steps, time.time_ns() // 1_000_000
        )
        mlf.log(client, str(run.info.run_id), metrics)
        client.set_terminated(str(run.info.run_id))
