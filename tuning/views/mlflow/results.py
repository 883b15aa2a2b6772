"""What is computed after a search, such as a confirmation, as runs below its parent run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from trainers.redact import redact
from tuning.runs.records import SearchRecord
from tuning.views.mlflow import client as mlf

logger = logging.getLogger(__name__)


def log_result(
    uri: str,
    experiment: str,
    search: SearchRecord,
    name: str,
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    step: int,
) -> None:
    """Write a finished run below that of a search; a second call with this name changes the run.

    A failure is a warning: the results are in the run folder.
    """
    try:
        client, experiment_id = mlf.connect(uri, experiment)
        with mlf.brief_requests():
            parent = mlf.search_run(client, experiment_id, search.run_id)
            if parent is None:
                command = f"`lipsum-tune report {search.run_folder}`"
                raise LookupError(f"it has no run of this search; {command} writes one")
            parent_id = str(parent.info.run_id)
            found = mlf.runs_below(client, experiment_id, parent_id, f"tags.result = '{name}'")
            own = {mlf.PARENT_TAG: parent_id, "search": search.name, "result": name}
            run = found[0] if found else client.create_run(experiment_id, None, own, name)
            logged = mlf.metrics_of(metrics, step, time.time())
            client.log_batch(run.info.run_id, logged, tags=mlf.tags_of({**own, **tags}))
            client.set_terminated(run.info.run_id)
    except Exception as error:
        reason = mlf.reason_of(error, uri)
        logger.warning("MLflow at %s does not have the %s: %s", redact(uri), name, reason)
