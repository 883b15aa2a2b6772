"""MLflow databases without runs: creating one takes seconds, copying it does not."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.tracking import MlflowClient

from tuning.views.mlflow.client import brief_requests, default_tracking_uri


@cache
def _template():
    """A folder with a database, made once in each process.

    It has tables alone. An experiment would have its artifacts in this folder.
    """
    folder = TemporaryDirectory(prefix="mlflow-")
    with brief_requests():
        MlflowClient(tracking_uri=default_tracking_uri(Path(folder.name))).search_experiments()
    return folder


def with_database(runs):
    """A folder of runs, which is created if it is missing, with a copy of that database."""
    runs.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(_template().name) / "mlflow.db", runs)
    return runs
