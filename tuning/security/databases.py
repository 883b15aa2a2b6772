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
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from trainers.errors import ConfigError
from trainers.redact import redact

DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
"""Schemes, without their drivers, of tracking URIs that SQLAlchemy opens; others are servers."""
CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
POSTGRESQL_HINT = (
    "`pip install 'lipsum-tune[postgresql]'` and write "
    "postgresql+psycopg://USER:${NAME}@HOST/DATABASE"
)


def expand(url: str) -> str:
    """The URL with `${NAME}` replaced by the environment variable."""
    return os.path.expandvars(url)


def is_database(url: str) -> bool:
    """Whether SQLAlchemy opens this URL."""
    return urlsplit(url).scheme.partition("+")[0] in DATABASES


def check_driver(key: str, url: str) -> None:
    """Raise a ConfigError if this is no URL of a database, or its Python driver is missing."""
    problem, hint = None, None
    try:
        make_url(expand(url)).get_dialect().import_dbapi()
    except ImportError as error:
        problem = f"the driver {error.name!r} is not installed"
        hint = POSTGRESQL_HINT if url.startswith("postgresql") else None
    except NoSuchModuleError:
        problem = "unknown database or driver"
    except (ArgumentError, ValueError):  # a port that is no number, or a password not escaped
        problem = "not a URL of a database"
        hint = "percent-encode special characters in a password"
    if problem:
        raise ConfigError(problem, key=key, value=redact(url), hint=hint) from None


def check_listens(url: str) -> None:
    """Raise an OSError within seconds if nothing listens there: clients retry for minutes."""
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()


def check_drivers(urls: Mapping[str, str | None]) -> None:
    """`check_driver` for those URLs, by configuration key, that are databases."""
    for key, url in urls.items():
        if url is not None and is_database(url):
            check_driver(key, url)
