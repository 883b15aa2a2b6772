"""What MLflow lacks of a search that no driver runs, from the journal: `lipsum-tune report`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuning.mlflow_logging.callback import MlflowCallback
from tuning.mlflow_logging.client import tracking_uri
from tuning.runs.run_folder import LoadedRun
from tuning.security.redaction import expand, redact


def catch_up(run: LoadedRun) -> str:
    """Write all that is missing; what is there already is not written twice.

    Runs that a killed driver left RUNNING are closed: whoever resumes the search opens them again.

    Args:
        run: that no driver runs.

    Returns:
        In one line, what MLflow has now.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    uri = tracking_uri(run.file.search.tracking.uri, run.folder.parent)
    where = redact(uri)
    if uri.startswith("sqlite:") and not _database(uri).is_file():
        return f"{where} is not here"  # the run folder was moved, or never had one
    callback = MlflowCallback(uri, run.file.search.tracking.experiment)
    callback.search_started(run.search)
    callback.search_ended(run.history.records, run.history.outcome or "stopped")
    if callback.num_pending:
        return f"{where} lacks {callback.num_pending} writes; ask again once it answers"
    return f"{where} has all of it"


def _database(uri: str) -> Path:
    return Path(unquote(urlsplit(expand(uri)).path.removeprefix("/")))
