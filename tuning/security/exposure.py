"""Network exposure: secrets and code that would be sent unencrypted."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from trainers.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; an unknown name counts as reachable."""
    host = host.strip("[]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_sends(url: str, what: str, allow_remote: bool) -> str | None:
    """A warning for a URL to which `what` would be sent unencrypted; None otherwise.

    Raises:
        ConfigError: it would, and `allow_remote` is not set; or not a URL of a web server.
    """
    parts = urlsplit(url)
    key = "--address"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("not of the form http://HOST:PORT or https://HOST", key=key, value=url)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://***@{parts.hostname}"
        raise ConfigError("a URL must not contain a password", key=key, value=shown)
    if parts.scheme == "https" or is_loopback(parts.hostname):
        return None
    risk = f"{what} would be sent to {parts.hostname} unencrypted"
    if not allow_remote:
        hint = (
            "forward its port to this machine (ssh -L, kubectl port-forward), use https, or add "
            "--allow-remote"
        )
        raise ConfigError(risk, key=key, value=url, hint=hint)
    return risk


def goes_unencrypted(url: str) -> bool:
    """Whether the URL is plain http to a public address; a host name is looked up."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False  # nothing can be sent
    return not all(ipaddress.ip_address(str(f[4][0]).partition("%")[0]).is_private for f in found)
