"""A connection to MLflow that fails fast, keeps its limits and leaks no secret.

MLflow's own defaults suit a script that has nothing better to do: an unreachable server is asked
again for minutes, and one value too long or not finite fails the whole request. A search must learn
in seconds that its record will not be kept, and must never stop or wait for long once it runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.exc import DBAPIError, InterfaceError

# MLflow reads the first when it is imported; the second keeps the two lines that it prints at every
# run's end out of the live display.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from trainers.errors import ConfigError
from tuning.security.redaction import check_driver, expand, goes_unencrypted, is_database
from tuning.security.redaction import redact as redact

_log = logging.getLogger(__name__)
# Of a database's error it writes a page, though it raises the same, which here becomes a line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

MAX_METRICS = 1000
"""Metrics of one request; params and tags have limits of their own."""
MAX_PARAMS = 100
# MLflow 3 allows 6000 and 8000 characters, servers before 2.10 refuse more than 500 in a param.
MAX_PARAM_CHARS = 500
MAX_TAG_CHARS = 5000
MAX_KEY_CHARS = 250
_CONNECT_SECONDS = 5.0
_REQUEST_SECONDS = 10
ARTIFACT_FOLDER = "mlflow-artifacts"

_SECRET_KEY = re.compile(
    r"(^|[._\-/])(password|passwd|pwd|secret|token|api_?key|access_?key|credentials?)$", re.I
)
_NOT_IN_A_KEY = re.compile(r"[^\w.\-/ ]")


class TrackingError(ConfigError):
    """The tracking server or database cannot be used; the text names it, without credentials."""


def default_tracking_uri(runs_folder: Path) -> str:
    """The SQLite database of a runs folder, for MLflow: `sqlite:////abs/runs/mlflow.db`."""
    return f"sqlite:///{runs_folder.resolve() / 'mlflow.db'}"


def tracking_uri(configured: str | None, runs_folder: Path) -> str:
    """Where a search is recorded: as configured, else as `MLFLOW_TRACKING_URI` says, else there."""
    named = configured or os.environ.get("MLFLOW_TRACKING_URI")
    return named or default_tracking_uri(runs_folder)


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, which is made where it is missing.

    With SQLite the experiment's artifacts lie in a folder beside the database; a server places them
    itself.

    Args:
        uri: as configured: `${NAME}` stands for a password in the environment.
        experiment: its name.

    Raises:
        TrackingError: within seconds, if it cannot be reached or used.
    """
    configured, uri = uri, expand(uri)
    if is_database(uri):
        check_driver("search.tracking.uri", configured)
    try:
        _check_reachable(uri)
        _warn_of_plain_text(uri)
        with brief_requests(retries=0), _quiet_migrations():
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment_id(client, experiment, uri)
    except TrackingError:
        raise
    except Exception as error:
        reason = redact(str(error), configured).strip() or type(error).__name__
        raise TrackingError(
            f"MLflow cannot be used at {redact(uri)}: {reason.splitlines()[0][:300]}. "
            "Start the server or correct the tracking URI."
        ) from None  # the cause's text may hold the credentials that were just taken out


def search_run(client: MlflowClient, experiment_id: str, run_folder: Path) -> Run | None:
    """The run of the search in that folder, below which others may be; None where there is none."""
    # Compared here, since a folder's name may hold quotes, which a filter cannot.
    folder = str(run_folder.resolve())
    searches = client.search_runs([experiment_id], "tags.kind = 'search'", max_results=50_000)
    return next((run for run in searches if run.data.tags.get("run_folder") == folder), None)


@contextlib.contextmanager
def brief_requests(retries: int = 1) -> Iterator[None]:
    """HTTP requests inside give up after seconds; a user's own MLFLOW_HTTP_* settings win."""
    # MLflow takes these from the environment only, and reads them at every request.
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_REQUEST_SECONDS),
    }
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def is_refusal(error: Exception) -> bool:
    """Whether a write failed for good: asking again would get the same answer.

    Connections, locked databases and servers in trouble come back; a value that MLflow will not
    take, a run that somebody deleted, or a mistake in our code does not.
    """
    if isinstance(error, MlflowException):
        cause = error.__cause__  # of a database that is used with no server between
        if isinstance(cause, InterfaceError) or (
            isinstance(cause, DBAPIError) and cause.connection_invalidated
        ):
            return False  # the connection broke, which MLflow calls a bad request
        if type(error) is MlflowException and not (cause or error.__context__):
            return True  # MLflow's own check in this process, and no request behind it
        status: int = error.get_http_status_code()
        return status in (400, 404, 409)
    return not isinstance(error, OSError)


def metrics_of(
    values: Mapping[str, float], step: int, timestamp_ms: int
) -> tuple[list[Metric], list[str]]:
    """The finite values as metrics, and a text for each that is not: charts cannot hold those."""
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    metrics = [Metric(_key(name), value, timestamp_ms, step) for name, value in finite.items()]
    return metrics, [f"{name}={values[name]}" for name in values if name not in finite]


def params_of(values: Mapping[str, object]) -> list[Param]:
    """Params with nested keys joined by dots, secrets taken out, long values cut."""
    return [Param(_key(key), text) for key, text in _flatten(values)]


def tags_of(values: Mapping[str, str]) -> list[RunTag]:
    """Tags, secrets in URIs taken out, long values cut."""
    return [RunTag(key, _cut(redact(value), MAX_TAG_CHARS)) for key, value in values.items()]


def log(
    client: MlflowClient,
    run_id: str,
    metrics: Sequence[Metric] = (),
    params: Sequence[Param] = (),
    tags: Sequence[RunTag] = (),
) -> None:
    """All of it in one request, or as few as MLflow's limits allow."""
    metrics, params, tags = list(metrics), list(params), list(tags)
    while metrics or params or tags:
        # No more than 1000 entities altogether, of which 100 params and 100 tags.
        room = MAX_METRICS - len(params[:MAX_PARAMS]) - len(tags[:MAX_PARAMS])
        client.log_batch(run_id, metrics[:room], params[:MAX_PARAMS], tags[:MAX_PARAMS])
        metrics, params, tags = metrics[room:], params[MAX_PARAMS:], tags[MAX_PARAMS:]


@functools.cache  # once a server
def _warn_of_plain_text(uri: str) -> None:
    if goes_unencrypted(uri):
        _log.warning(
            "%s is a public address and no https: all that is written there, and a password or "
            "token of MLFLOW_TRACKING_* with it, can be read on the way.",
            redact(uri),
        )


def _check_reachable(uri: str) -> None:
    """Fails at once where MLflow would ask a database ten times, over two minutes."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        path = Path(unquote(parts.path.removeprefix("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=_CONNECT_SECONDS)) as database:
            database.execute("PRAGMA schema_version")
    elif parts.hostname and scheme in ("postgresql", "mysql", "mssql"):
        port = parts.port or {"postgresql": 5432, "mysql": 3306, "mssql": 1433}[scheme]
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:"):
            database = Path(unquote(urlsplit(uri).path.removeprefix("/")))
            location = (database.resolve().parent / ARTIFACT_FOLDER).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another search was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} at {redact(uri)} is deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


@contextlib.contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Keeps the fifty lines of the first migration of a new database off the terminal."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{key}.")
        elif _SECRET_KEY.search(key):
            yield key, "***"
        else:
            # JSON for lists, so that they can be read back; plain text for the rest.
            listed = isinstance(value, list | tuple | Mapping)
            text = json.dumps(value, default=str) if listed else str(value)
            yield key, _cut(redact(text), MAX_PARAM_CHARS)


def _key(name: str) -> str:
    return _NOT_IN_A_KEY.sub("_", name)[:MAX_KEY_CHARS]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
