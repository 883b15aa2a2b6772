"""A connection to MLflow that fails within seconds, and entities that leak no secrets."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock

from trainers.errors import ConfigError, first_line
from trainers.folders import temporary_folder
from trainers.overrides import flat
from trainers.redact import is_secret_name
from trainers.redact import redact as redact
from tuning.execution.signals import environment_variables


@contextlib.contextmanager
def brief_requests(retries: int = 1) -> Iterator[None]:
    """Within the block, MLflow gives up requests after seconds, and neither logs nor prints much.

    A user's own settings of the environment win. All is restored afterwards.
    """
    # MLflow takes these from the environment only, and reads them at every request.
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    # A page for an error that is also raised; fifty lines for a new database; an input example.
    with contextlib.ExitStack() as restore:
        restore.enter_context(environment_variables(settings, override=False))
        for logger in map(logging.getLogger, ("mlflow.store.db.utils", "alembic", "mlflow.pyfunc")):
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield


with brief_requests():  # MLflow 3.17 starts its telemetry when it is imported
    from mlflow.entities import Dataset as Dataset
    from mlflow.entities import DatasetInput as DatasetInput
    from mlflow.entities import Metric, Param, Run, RunTag
    from mlflow.exceptions import MlflowException as MlflowException
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
MAX_CHARS = 5000
"""Limit of a value. MLflow allows 6000 in a param, 8000 in a tag."""
_CONNECT_SECONDS = 5.0
_MIGRATION_SECONDS = 300.0
"""Time to wait while other processes create the database, which takes some 10 s of CPU time."""


class TrackingError(ConfigError):
    """The tracking server or database cannot be used; the text names it, without credentials."""


def default_tracking_uri(runs_folder: Path) -> str:
    """The SQLite database of a runs folder, for MLflow: `sqlite:////abs/runs/mlflow.db`."""
    return f"sqlite:///{runs_folder.resolve() / 'mlflow.db'}"


def tracking_uri(configured: str | None, runs_folder: Path) -> str:
    """The configured URI, else `MLFLOW_TRACKING_URI`, else the database of the runs folder."""
    named = configured or os.environ.get("MLFLOW_TRACKING_URI")
    return named or default_tracking_uri(runs_folder)


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite URI; None for servers and other databases."""
    scheme, _, path = os.path.expandvars(uri).partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return None
    return Path(path.partition("?")[0].removeprefix("/"))


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client, and the ID of the experiment, which is created if it is missing.

    With SQLite the experiment's artifacts lie in a folder beside the database; a server places them
    itself.

    Args:
        uri: as configured: `${NAME}` stands for a password in the environment.

    Raises:
        TrackingError: it cannot be reached or used; within seconds, but for database servers.
    """
    configured, uri = uri, os.path.expandvars(uri)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(brief_requests(retries=0))
            if path := sqlite_path(uri):
                path.parent.mkdir(parents=True, exist_ok=True)
                # FileLock would try for minutes where no file can be created.
                tempfile.TemporaryFile(dir=path.parent).close()
                # MLflow 3.17 creates and migrates the tables of a new SQLite database at the first
                # connection without a lock: two processes that do it at once destroy it.
                stack.enter_context(FileLock(f"{path}.lock", timeout=_MIGRATION_SECONDS))
                if not path.exists():
                    # Nor can it repeat a migration that was killed. So it is made in one piece.
                    with temporary_folder(f"{path.name}-new-", path.parent) as folder:
                        new = folder / path.name
                        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
                        new.replace(path)
                # Fails at once, where MLflow would try ten times over two minutes.
                with contextlib.closing(sqlite3.connect(path, timeout=_CONNECT_SECONDS)) as file:
                    file.execute("PRAGMA schema_version")
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment_id(client, experiment, path)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow cannot be used at {redact(uri)}: {reason_of(error, configured)}. "
            "Start the server or correct the tracking URI."
        ) from None  # the cause's text may hold the credentials that were just taken out


def search_run(
    client: MlflowClient, experiment_id: str, search_id: str, which: str = "tags.kind = 'search'"
) -> Run | None:
    """A run of the search whose journal has this run ID, its parent run by default; or None."""
    wanted = f"tags.search_id = '{search_id}' and {which}"
    return next(iter(client.search_runs([experiment_id], wanted, max_results=1)), None)


def reason_of(error: Exception, uri: str) -> str:
    """The first line of MLflow's error, which may be long, without the secrets of the URI."""
    return redact(first_line(error), uri)[:300]


def key_of(name: str) -> str:
    """The name of a metric or parameter in MLflow: characters that it refuses become their code."""
    return re.sub(r"[^\w.\-/ ]", lambda found: f"_{ord(found[0]):x}", name)


def metrics_of(values: Mapping[str, float], step: int, time: float) -> list[Metric]:
    """The finite values as metrics of a time in Unix seconds. MLflow's charts show no others."""
    return [
        Metric(key_of(name), float(value), round(1000 * time), step)
        for name, value in values.items()
        if math.isfinite(value)
    ]


def params_of(values: Mapping[str, object]) -> list[Param]:
    """Params with nested keys joined by dots, secrets removed, long values cut."""
    params = []
    for key, value in flat(values).items():
        # JSON for lists, so that they can be read back; plain text for the rest.
        listed = isinstance(value, list | tuple | Mapping)
        text = json.dumps(value, default=str) if listed else str(value)
        shown = "***" if is_secret_name(key) else redact(text)[:MAX_CHARS]
        params.append(Param(key_of(key), shown))
    return params


def tags_of(values: Mapping[str, str]) -> list[RunTag]:
    """Tags that have a value, with secrets in URIs removed and long values cut."""
    return [RunTag(key, redact(value)[:MAX_CHARS]) for key, value in values.items() if value]


def _experiment_id(client: MlflowClient, name: str, database: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = None
        if database is not None:
            folder = (database.resolve().parent / "mlflow-artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=folder))
        except MlflowException:  # a search that began at the same moment has created it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} is deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)
