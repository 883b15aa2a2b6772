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

from filelock import FileLock, Timeout

from trainers.errors import ConfigError, first_line
from trainers.folders import private_lock, temporary_folder
from trainers.overrides import flat
from trainers.redact import is_secret_name
from trainers.redact import redact as redact
from tuning.process import environment_variables


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block, MLflow neither logs nor prints much, and sends no telemetry.

    A user's own settings of the environment win. All is restored afterwards.
    """
    # MLflow takes these from the environment only, and reads them at every request.
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    # A page for an error that is also raised; fifty lines for a new database; an input example; a
    # line for each attempt of a request.
    names = "mlflow.store.db.utils", "alembic", "mlflow.pyfunc", "urllib3.connectionpool"
    with contextlib.ExitStack() as restore:
        restore.enter_context(environment_variables(settings, override=False))
        for logger in map(logging.getLogger, names):
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield


@contextlib.contextmanager
def brief_requests() -> Iterator[None]:
    """Within the block, MLflow gives up requests after seconds, and is `quiet`."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    with environment_variables(limits, override=False), quiet():
        yield


with quiet():  # MLflow 3.17 starts its telemetry when it is imported
    from mlflow.entities import Dataset as Dataset
    from mlflow.entities import DatasetInput as DatasetInput
    from mlflow.entities import Metric, Param, Run, RunTag
    from mlflow.exceptions import MlflowException as MlflowException
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
MAX_CHARS = 5000
"""Limit of a value. MLflow allows 6000 in a param, 8000 in a tag."""
_ARTIFACTS = "mlflow-artifacts"
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow 3.17's database with places of artifacts."""
_CONNECT_SECONDS = 5.0
_MIGRATION_SECONDS = 300.0
"""Time to wait while other processes create the database, which takes some 10 s of CPU time."""

logger = logging.getLogger(__name__)


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
            stack.enter_context(brief_requests())
            if path := sqlite_path(uri):
                path.parent.mkdir(parents=True, exist_ok=True)
                # FileLock would try for minutes where no file can be created.
                tempfile.TemporaryFile(dir=path.parent).close()
                # MLflow 3.17 creates and migrates the tables of a new SQLite database at the first
                # connection without a lock: two processes that do it at once destroy it.
                stack.enter_context(_locked(path))
                if not path.exists():
                    # Nor can it repeat a migration that was killed. So it is made in one piece.
                    with temporary_folder(f"{path.name}-new-", path.parent) as folder:
                        new = folder / path.name
                        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
                        new.replace(path)
                # Fails at once, where MLflow would try ten times over two minutes.
                with contextlib.closing(sqlite3.connect(path, timeout=_CONNECT_SECONDS)) as file:
                    file.execute("PRAGMA schema_version")
                    _follow_the_move(file, artifacts_of(path))
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment_id(client, experiment, path)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow cannot be used at {redact(uri)}: {reason_of(error, configured)}. "
            "Start the server or correct the tracking URI."
        ) from None  # the cause's text may hold the credentials that were just taken out


def artifacts_of(database: Path) -> str:
    """The folder of artifacts beside an SQLite database, as a URI."""
    return (database.resolve().parent / _ARTIFACTS).as_uri()


def _follow_the_move(file: sqlite3.Connection, here: str) -> None:
    """Correct the places of artifacts in a database that was copied or moved with their folder.

    MLflow stores them as absolute paths, so a copy would write into the folder of the original.
    """
    columns = {
        table: {row[1] for row in file.execute(f"PRAGMA table_info({table})")}
        for table, _ in _PLACES
    }
    if not columns["experiments"]:  # MLflow has not made its tables yet
        return
    found = file.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    for (there,) in found:
        is_ours = str(there).startswith("file:") and str(there).endswith(f"/{_ARTIFACTS}")
        if not is_ours or there == here:
            continue
        with file:  # all of it or nothing
            for table, column in _PLACES:
                if column in columns[table]:
                    file.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column} || '/', 1, ?) = ?",
                        (here, len(there) + 1, len(there) + 1, f"{there}/"),
                    )
        logger.warning("MLflow's database was moved or copied: its artifacts are in %s", here)


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Hold the lock beside a database, which only those can take who may write its folder."""
    path = database.with_name(f"{database.name}.lock")
    private_lock(path).close()
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("waiting for %s, which another process has locked", path)
        lock.acquire(timeout=_MIGRATION_SECONDS)
    try:
        yield
    finally:
        lock.release()


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
        folder = None if database is None else artifacts_of(database)
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
