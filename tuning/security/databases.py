"""URLs of databases: passwords that they take from the environment, and drivers.

A configuration has `${NAME}` in place of a password. Redact (`trainers.redact`) a URL before it is
shown in a log, a message or MLflow.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from trainers.errors import ConfigError, first_line
from trainers.redact import redact

DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
"""Schemes, without their drivers, of tracking URIs that SQLAlchemy opens; others are servers."""
CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
HINT = (
    "for PostgreSQL, `pip install 'lipsum-tune[postgresql]'` and write "
    "postgresql+psycopg://USER:${NAME}@HOST/DATABASE"
)


def expand(url: str) -> str:
    """The URL with `${NAME}` replaced by the environment variable."""
    return os.path.expandvars(url)


def is_database(url: str) -> bool:
    """Whether SQLAlchemy opens this URL."""
    return urlsplit(url).scheme.partition("+")[0] in DATABASES


def check_listens(url: str) -> None:
    """Raise an OSError within seconds if nothing listens there: clients retry for minutes."""
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()


def check_drivers(urls: Mapping[str, str | None]) -> None:
    """Raise a ConfigError for a database, by configuration key, that has no Python driver here."""
    for key, url in urls.items():
        if url is None or not is_database(url):
            continue
        try:
            make_url(expand(url)).get_dialect().import_dbapi()
        # No driver, an unknown one, a port that is no number, a password that is not escaped.
        except (ImportError, SQLAlchemyError, ValueError) as error:
            problem = redact(first_line(error), url)
            raise ConfigError(problem, key=key, value=redact(url), hint=HINT) from None
