"""What is computed after a search, such as a confirmation, as runs below its parent run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    params: Mapping[str, object] | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Write a finished run below that of a search, and add files to the artifacts of the search.

    A failure is a warning: the results are in the run folder.

    Args:
        name: identifies the result: its run gets the new values, unless it has them already.
    """
    try:
        client, experiment_id = mlf.connect(uri, experiment)
        with mlf.brief_requests():
            parent = mlf.search_run(client, experiment_id, search.run_id)
            if parent is None:
                command = f"`lipsum-tune report {search.run_folder}`"
                raise LookupError(f"it has no run of this search; {command} writes one")
            parent_id = str(parent.info.run_id)
            own = {mlf.PARENT_TAG: parent_id, "search": search.name, "result": name}
            found = mlf.runs_below(client, experiment_id, parent_id, f"tags.result = '{name}'")
            logged = mlf.metrics_of(metrics, step, time.time())
            if not found or found[0].data.metrics != {m.key: m.value for m in logged}:
                marked = mlf.tags_of(own | {"outcome": "finished"} | dict(tags))
                run = found[0] if found else mlf.create_run(client, experiment_id, name, marked)
                client.log_batch(run.info.run_id, logged, mlf.params_of(params or {}), marked)
                client.set_terminated(run.info.run_id)
            for file in files:
                client.log_artifact(parent_id, str(file))
    except Exception as error:
        reason = mlf.reason_of(error, uri)
        logger.warning("MLflow at %s does not have the %s: %s", redact(uri), name, reason)
