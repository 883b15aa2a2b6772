"""Who else can reach an address: what goes there unencrypted, or listens there without a password.

Ray's dashboard runs any code that it is sent and MLflow shows and deletes any run, so both are for
this machine alone unless somebody says otherwise.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from trainers.errors import ConfigError

ALLOW_REMOTE = "--allow-remote"


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, seen from itself; a name that is not told apart is not."""
    host = host.strip("[]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listens(host: str, server: str, allow_remote: bool) -> str | None:
    """A warning for a server that others can reach; None where none can.

    Raises:
        ConfigError: they can, and nobody said that they may.
    """
    if is_loopback(host):
        return None
    risk = f"{server} asks for no password, and whoever can reach {host} can use it"
    if not allow_remote:
        raise ConfigError(f"--host {host}: {risk}; say {ALLOW_REMOTE} if that is wanted")
    return risk


def check_sends(url: str, what: str, allow_remote: bool) -> str | None:
    """A warning for a URL to which `what` would go unencrypted over a network; None otherwise.

    Raises:
        ConfigError: it would, and nobody said that it may; or it is no URL of a web server.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address {url}: not of the form http://HOST:PORT or https://HOST")
    if parts.username or parts.password:
        raise ConfigError(f"--address {parts.scheme}://***@{parts.hostname}: no passwords in a URL")
    if parts.scheme == "https" or is_loopback(parts.hostname):
        return None
    risk = f"{what} would go to {parts.hostname} unencrypted"
    if not allow_remote:
        raise ConfigError(
            f"--address {url}: {risk}; forward its port to this machine (ssh -L, kubectl "
            f"port-forward), use https, or say {ALLOW_REMOTE}"
        )
    return risk
