"""URLs of databases and servers: secrets that they take from the environment, and drivers.

A configuration says `${NAME}` in place of a password. What is shown to anybody, in a log, a message
or MLflow, goes through `redact` first.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from trainers.errors import ConfigError

DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
"""Schemes of tracking URIs, less their drivers, that SQLAlchemy opens and no server answers."""
POSTGRESQL_EXTRA = "`pip install 'lipsum-tune[postgresql]'` and write postgresql+psycopg://USER:${NAME}@HOST/DATABASE"

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
# A password may hold a slash where nobody escaped it; a path may hold an @.
_CREDENTIALS = re.compile(r"(\b[a-z][\w+.\-]*://)(?:[^/\s]*|[^/\s:'\"]*:[^\s'\"]*)@", re.I)
_QUERY_SECRET = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)[^&\s]+", re.I)


def expand(url: str) -> str:
    """The URL with `${NAME}` replaced by what the environment says."""
    return os.path.expandvars(url)


def redact(text: str, url: str = "") -> str:
    """The text with user, password and tokens in its URIs replaced by `***`.

    Args:
        text: to be shown.
        url: as configured; what it takes from the environment is replaced wherever it stands.
    """
    for names in _VARIABLE.findall(url):
        value = os.environ.get(names[0] or names[1])
        text = text.replace(value, "***") if value else text
    return _QUERY_SECRET.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def is_database(url: str) -> bool:
    """Whether SQLAlchemy opens it, rather than a server answering at it."""
    return urlsplit(url).scheme.partition("+")[0] in DATABASES


def check_driver(key: str, url: str) -> None:
    """Look for the Python package that opens the database.

    Args:
        key: of the configuration, to be named.
        url: of a database, as configured.

    Raises:
        ConfigError: it is not installed, or the URL is none.
    """
    try:
        make_url(expand(url)).get_dialect().import_dbapi()
    except ImportError as error:
        what = f"{key} = {redact(url)!r}: the driver {error.name!r} is not installed"
        if url.startswith("postgresql"):
            raise ConfigError(f"{what}; {POSTGRESQL_EXTRA}") from None
        raise ConfigError(what) from None
    except NoSuchModuleError:
        raise ConfigError(f"{key} = {redact(url)!r}: no such database or driver") from None
    except (ArgumentError, ValueError):  # a port that is no number, or a password not escaped
        raise ConfigError(
            f"{key} = {redact(url)!r}: no URL of a database; what is special in a password is "
            "percent-encoded"
        ) from None


def check_drivers(urls: Mapping[str, str | None]) -> None:
    """`check_driver` of those that are databases; keys of the configuration are the names."""
    for key, url in urls.items():
        if url is not None and is_database(url):
            check_driver(key, url)


def goes_unencrypted(url: str) -> bool:
    """Whether what is sent there crosses a public network in plain text: `http://`, and not home.

    Loopback and private addresses are home; a name is looked up.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False  # nothing will be sent
    return not all(ipaddress.ip_address(str(f[4][0]).partition("%")[0]).is_private for f in found)
