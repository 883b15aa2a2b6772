"""What a search's driver talks to beside Ray: MLflow, and the database of the Optuna study."""

from __future__ import annotations

import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.doctor.finding import Finding
from trainers.errors import ConfigError, first_line, system_words
from tuning.config.schema import SearchFile
from tuning.security.redaction import check_driver, expand, goes_unencrypted, is_database, redact

_ANSWER_S = 5.0
_PORTS = {
    "http": 80,
    "https": 443,
    "postgresql": 5432,
    "mysql": 3306,
    "mariadb": 3306,
    "mssql": 1433,
    "oracle": 1521,
}


def tracking(file: SearchFile, runs_folder: Path | None) -> Iterator[Finding]:
    """Whether MLflow can be used from here, where a search's driver would use it.

    Args:
        file: the configuration.
        runs_folder: of the run folders, where that is a local one.
    """
    from mlflow.version import VERSION

    from tuning.mlflow_logging.client import connect, tracking_uri

    uri = tracking_uri(file.search.tracking.uri, runs_folder or Path())
    expanded = expand(uri)
    database = sqlite_file(expanded)
    if database is not None and not database.is_file():
        # Not made only to be looked at; whether it can be is a question of the run storage.
        yield Finding("MLflow", "ok", f"a SQLite database, made by the first search: {database}")
        return
    try:
        _require_answer(expanded)
        connect(uri, file.search.tracking.experiment)
    except (ConfigError, OSError) as error:
        yield Finding(
            "MLflow", "fault", _why(error, uri),
            "see that its server runs and this machine may reach it; search.tracking.uri or "
            "MLFLOW_TRACKING_URI say where it is",
        )  # fmt: skip
        return
    server = server_version(expanded)
    theirs = f", server {server}" if server else ""
    yield Finding("MLflow", "ok", f"{redact(uri)} answers: client {VERSION}{theirs}")
    if server and server.split(".")[0] != VERSION.split(".")[0]:
        yield Finding(
            "MLflow", "warning", f"its server is {server}, the client {VERSION}",
            f"pip install 'mlflow~={'.'.join(server.split('.')[:2])}' here, or upgrade the server",
        )  # fmt: skip
    if goes_unencrypted(expanded):
        yield Finding(
            "security", "warning",
            f"what is recorded goes to {redact(uri)} unencrypted over a public network",
            "put MLflow behind https, or forward its port: ssh -L 5000:127.0.0.1:5000 SERVER",
        )  # fmt: skip


def study_storage(url: str | None) -> Finding:
    """Whether the database of the Optuna study can be used from here.

    Args:
        url: `search.study_storage`; variables in it are taken from the environment.
    """
    from tuning.algorithms.study import open_storage

    if url is None:
        return Finding("Optuna", "ok", "a journal file in the run folder")
    try:
        if is_database(url):
            check_driver("search.study_storage", url)
        _require_answer(expand(url))
        open_storage(Path(), url)
    except (ConfigError, OSError) as error:
        return Finding(
            "Optuna", "fault", _why(error, url),
            "see that the database runs and that this machine may reach it",
        )  # fmt: skip
    return Finding("Optuna", "ok", f"{redact(url)} answers")


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI; None of any other, and of a database in memory."""
    parts = urlsplit(uri)
    if parts.scheme.partition("+")[0] != "sqlite" or not parts.path.strip("/"):
        return None
    return Path(unquote(parts.path.removeprefix("/"))).absolute()


def server_version(uri: str) -> str:
    """What an MLflow server says that it is; empty where it does not, or there is none."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return ""
    # Neither user nor password: MLflow tells its version to everybody.
    host = parts.netloc.rpartition("@")[2]
    url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/version"
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
            said = answer.read(64).decode(errors="replace").strip()
    except (OSError, ValueError):
        return ""
    return said if said[:1].isdecimal() else ""


def _why(error: ConfigError | OSError, url: str) -> str:
    if isinstance(error, OSError):
        return f"nothing answers at {redact(url)}: {system_words(error)}"
    return redact(first_line(error), url)


def _require_answer(url: str) -> None:
    """Fail in seconds where a driver would wait for minutes.

    Raises:
        OSError: nothing answers there.
        ConfigError: a SQLite file that cannot be opened.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    if parts.hostname and scheme in _PORTS:
        place = (parts.hostname, parts.port or _PORTS[scheme])
        socket.create_connection(place, timeout=_ANSWER_S).close()
    elif (path := sqlite_file(url)) is not None:
        try:
            sqlite3.connect(path, timeout=_ANSWER_S).close()
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: {error}") from None
