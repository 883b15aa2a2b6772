"""Finding secrets in URLs, names and messages, and hiding them. The only place with their patterns.

All functions take time linear in the length of the text: they also get texts of attackers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?"
    r"|(?:api|access|account|private|secret|storage)_?key|connection_?string)(?:[^a-z]|$)|(?:password|passwd|secret|token|apikey)$",
    re.I,
)
_SECRET_PARTS = ("pass", "pwd", "secret", "token", "key", "sig")
"""What the name of a URL's query parameter contains if its value is secret."""
# The user part of a URL, up to the last @ before a slash. A password may contain a slash that was
# not escaped, and a path may contain an @.
_USER = re.compile(r"[^/\s]*@|[^/\s:'\"]*:[^\s'\"]*@")
_CONNECTION = re.compile(r"\b(AccountKey|SharedAccess(?:Key|Signature))=([^;\s]+)", re.I)
"""The secrets in a connection string of Azure."""
_QUERY = re.compile(r"([?&])([^=&?\s]+)=([^&\s]+)")


def is_secret_name(name: str) -> bool:
    """Whether a variable or key has the name of a secret, such as `HF_TOKEN` or `api_key`."""
    return name.upper() != "PWD" and _SECRET_NAME.search(name) is not None


def has_password(text: str) -> bool:
    """Whether a URL or connection string contains a secret, and not `${NAME}` in its place."""
    return any(not re.fullmatch(r"\$\{\w+\}", secret) for secret in _secrets(text))


def _secrets(text: str) -> Iterator[str]:
    """The passwords, tokens and keys in the URLs and connection strings of a text."""
    before, *urls = text.split("://")
    for url in urls:
        user, colon, password = url.partition(":")
        if colon and not set("/@") & set(user) and "@" in password[1:]:
            yield password[0] + password[1:].partition("@")[0]
        token, at, _ = url.partition("@")
        if before.endswith(("http", "https")) and at and not set(":/") & set(token):
            yield token
        before = url
    yield from (secret for _, secret in _CONNECTION.findall(text))
    for _, name, value in _QUERY.findall(text):
        if any(part in name.lower() for part in _SECRET_PARTS):
            yield value


def redact(text: str, url: str = "") -> str:
    """The text with `***` for user, password and tokens in its URLs, and keys of Azure.

    Args:
        url: a URL as configured; values that it takes from the environment are hidden in the whole
            text.
    """
    for names in _VARIABLE.findall(url):
        value = os.environ.get(names[0] or names[1])
        text = text.replace(value, "***") if value else text
    first, *urls = text.split("://")
    for index, rest in enumerate(urls):
        if user := _USER.match(rest):
            urls[index] = "***@" + rest[user.end() :]
    return _QUERY.sub(_hidden, _CONNECTION.sub(r"\1=***", "://".join([first, *urls])))


def _hidden(found: re.Match[str]) -> str:
    mark, name, _ = found.groups()
    is_secret = any(part in name.lower() for part in _SECRET_PARTS)
    return f"{mark}{name}=***" if is_secret else found[0]
