"""A connection to MLflow that fails fast, respects MLflow's limits and leaks no secrets.

MLflow's defaults suit a script with nothing better to do: it retries an unreachable server for
minutes, and one value that is too long or not finite fails the whole request. A search must fail
within seconds at its start if it cannot be recorded, and must never stop or wait afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from filelock import FileLock
from sqlalchemy.exc import DBAPIError, InterfaceError

from trainers.errors import ConfigError
from trainers.overrides import flat
from trainers.redact import is_secret_name
from trainers.redact import redact as redact
from tuning.execution.signals import environment_variables
from tuning.security.databases import (
    CONNECT_SECONDS,
    check_driver,
    check_listens,
    expand,
    is_database,
)
from tuning.security.exposure import goes_unencrypted


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
        # Two lines at the end of every run, in the middle of the live display.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    loggers = {
        # A page for a database error that MLflow also raises, and which is reported in one line.
        logging.getLogger("mlflow.store.db.utils"): logging.CRITICAL,
        # A line about an input example that fits.
        logging.getLogger("mlflow.pyfunc"): logging.WARNING,
        # Fifty lines while MLflow creates a new database.
        logging.getLogger("alembic"): logging.WARNING,
    }
    with contextlib.ExitStack() as restore:
        restore.enter_context(environment_variables(settings, override=False))
        for logger, level in loggers.items():
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(max(logger.level, level))
        yield


with brief_requests():  # MLflow 3.17 starts its telemetry when it is imported
    from mlflow.entities import Metric, Param, Run, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
ARTIFACT_FOLDER = "mlflow-artifacts"

MAX_METRICS = 1000
"""Entities of one request; params and tags have limits of their own."""
MAX_PARAMS = 100
# MLflow 3 allows 6000 and 8000 characters; servers before 2.10 refuse more than 500 in a param.
MAX_PARAM_CHARS = 500
MAX_TAG_CHARS = 5000
MAX_KEY_CHARS = 250
_MIGRATION_SECONDS = 300.0
"""Time to wait while other processes create the database, which takes some 10 s of CPU time."""

_NOT_IN_A_KEY = re.compile(r"[^\w.\-/ ]")


class TrackingError(ConfigError):
    """The tracking server or database cannot be used; the text names it, without credentials."""


def default_tracking_uri(runs_folder: Path) -> str:
    """The SQLite database of a runs folder, for MLflow: `sqlite:////abs/runs/mlflow.db`."""
    path = str(runs_folder.resolve() / "mlflow.db")
    # SQLAlchemy 2.1 unquotes the path up to a `?`, and MLflow does not. So nothing else is quoted.
    return "sqlite:///" + re.sub(r"\?|%(?=[0-9A-Fa-f]{2})", lambda found: quote(found[0]), path)


def tracking_uri(configured: str | None, runs_folder: Path) -> str:
    """The configured URI, else `MLFLOW_TRACKING_URI`, else the database of the runs folder."""
    named = configured or os.environ.get("MLFLOW_TRACKING_URI")
    return named or default_tracking_uri(runs_folder)


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite URI; None for servers and other databases."""
    scheme, _, path = expand(uri).partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return None
    return Path(unquote(path.partition("?")[0].removeprefix("/")))  # a `#` is part of the path


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client, and the ID of the experiment, which is created if it is missing.

    With SQLite the experiment's artifacts lie in a folder beside the database; a server places them
    itself.

    Args:
        uri: as configured: `${NAME}` stands for a password in the environment.

    Raises:
        TrackingError: within seconds, if it cannot be reached or used.
    """
    configured, uri = uri, expand(uri)
    if is_database(uri):
        check_driver("search.tracking.uri", configured)
    try:
        # MLflow 3.17 creates and migrates the tables of a new SQLite database at the first
        # connection without a lock: two processes that do it at once destroy the database.
        path = sqlite_path(uri)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=_MIGRATION_SECONDS) if path else None
        with lock or contextlib.nullcontext():
            # At once, where MLflow would try to open a database ten times over two minutes.
            if path is not None:
                with contextlib.closing(sqlite3.connect(path, timeout=CONNECT_SECONDS)) as file:
                    file.execute("PRAGMA schema_version")
            elif is_database(uri):
                check_listens(uri)
            _warn_of_plain_text(uri)
            with brief_requests(retries=0):
                client = MlflowClient(tracking_uri=uri)
                return client, _experiment_id(client, experiment, uri)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow cannot be used at {redact(uri)}: {reason_of(error, configured)}. "
            "Start the server or correct the tracking URI."
        ) from None  # the cause's text may hold the credentials that were just taken out


def search_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    """The parent run of the search whose journal has this run ID; None if there is none."""
    found = client.search_runs(
        [experiment_id], f"tags.search_id = '{run_id}' and tags.kind = 'search'", max_results=1
    )
    return found[0] if found else None


def runs_below(
    client: MlflowClient, experiment_id: str, parent_id: str, condition: str = ""
) -> list[Run]:
    """All runs below a parent run that meet a condition of MLflow's filter language."""
    wanted = f"tags.`{PARENT_TAG}` = '{parent_id}'" + (f" and {condition}" if condition else "")
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], wanted, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def reason_of(error: Exception, uri: str) -> str:
    """The first line of MLflow's error, which may be long, without the secrets of the URI."""
    text = redact(str(error), uri).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def is_refusal(error: Exception) -> bool:
    """Whether a write failed for good: a retry would get the same answer.

    Connections, locked databases and overloaded servers recover. A value that MLflow does not
    accept, a run that a user deleted, or a bug in this code does not.
    """
    if isinstance(error, MlflowException):
        cause = error.__cause__  # set if the client uses the database without a server
        if isinstance(cause, InterfaceError) or (
            isinstance(cause, DBAPIError) and cause.connection_invalidated
        ):
            return False  # the connection broke, which MLflow reports as a bad request
        if type(error) is MlflowException and not (cause or error.__context__):
            return True  # MLflow's own check in this process, before any request
        status: int = error.get_http_status_code()
        return status in (400, 404, 409)
    return not isinstance(error, OSError)


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The finite values under the names that MLflow allows; its charts cannot show others."""
    keys = keys_of(values)
    return {keys[name]: float(v) for name, v in values.items() if math.isfinite(v)}


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """Name -> the name that MLflow allows, with a hash if several names would have the same."""
    keys = {name: _key(name) for name in names}
    number = Counter(keys.values())
    return {
        name: key
        if number[key] == 1 or key == name
        else f"{key[: MAX_KEY_CHARS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, key in keys.items()
    }


def metrics_of(values: Mapping[str, float], step: int, timestamp_ms: int) -> list[Metric]:
    """The finite values as metrics."""
    return [Metric(name, value, timestamp_ms, step) for name, value in finite(values).items()]


def params_of(values: Mapping[str, object]) -> list[Param]:
    """Params with nested keys joined by dots, secrets removed, long values cut."""
    params = []
    for key, value in flat(values).items():
        # JSON for lists, so that they can be read back; plain text for the rest.
        listed = isinstance(value, list | tuple | Mapping)
        text = json.dumps(value, default=str) if listed else str(value)
        shown = "***" if is_secret_name(key) else _cut(redact(text), MAX_PARAM_CHARS)
        params.append(Param(_key(key), shown))
    return params


def tags_of(values: Mapping[str, str]) -> list[RunTag]:
    """Tags, with secrets in URIs removed and long values cut."""
    return [RunTag(key, _cut(redact(value), MAX_TAG_CHARS)) for key, value in values.items()]


def log(
    client: MlflowClient,
    run_id: str,
    metrics: Sequence[Metric] = (),
    params: Sequence[Param] = (),
    tags: Sequence[RunTag] = (),
) -> None:
    """Log everything in as few requests as MLflow's limits allow."""
    metrics, params, tags = list(metrics), list(params), list(tags)
    while metrics or params or tags:
        # At most 1000 entities, of which at most 100 params and 100 tags.
        room = MAX_METRICS - len(params[:MAX_PARAMS]) - len(tags[:MAX_PARAMS])
        client.log_batch(run_id, metrics[:room], params[:MAX_PARAMS], tags[:MAX_PARAMS])
        metrics, params, tags = metrics[room:], params[MAX_PARAMS:], tags[MAX_PARAMS:]


@functools.cache  # once for each server
def _warn_of_plain_text(uri: str) -> None:
    if goes_unencrypted(uri):
        _log.warning(
            "%s is a public address without https: everything that is written there, including a "
            "password or token of MLFLOW_TRACKING_*, can be read on the way.",
            redact(uri),
        )


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(uri)
        location = None
        if database is not None:
            location = (database.resolve().parent / ARTIFACT_FOLDER).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another search has just created it
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} at {redact(uri)} is deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


def _key(name: str) -> str:
    return _NOT_IN_A_KEY.sub("_", name)[:MAX_KEY_CHARS]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
