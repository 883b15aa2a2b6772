"""Finding secrets in URLs, names and messages, and hiding them. The only place with their patterns.

A token in a segment of a path, or in a user part without `//` before it, has no mark by which it
could be found. All functions take time linear in the length of the text: they also get texts of
attackers.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator

WRITE_NAME = "write ${NAME} in its place, and set that variable in the environment"
"""How a configuration passes a secret."""
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
# Words that count anywhere in a name, then those that count at its end.
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:pass(?:word|wd|phrase)?|pwd|secret|(?-i:TOKEN)|credentials?"
    r"|(?:api|access|account|private|secret|storage)_?key|connection_?string)(?:[^a-z]|$)"
    r"|(?:password|passwd|secret|token|signature|(?:api|access|account|secret)key(?:id)?)$"
    r"|(?:^|[^a-z])(?:auth|authorization|jwt|pat|sig)$|(?-i:_KEY)$"
    r"|(?:^|_)(?:database|db|mongodb|postgres|redis|webhook)_ur[il]$|_(?:dsn|webhook)$",
    re.I,
)
_PARAMETER = re.compile(
    r"[?&#].*(?:pass|pwd?|secret|token|key|sig|auth|jwt|credential)|[?&#]code$", re.I
)
"""The name of a URL's parameter, with its mark, if its value is secret. `exit code=1` is no URL."""
# The user part of a URL, or the name of a parameter of a URL or of a connection string. A user part
# ends at its last @, because a password may contain an @ or a slash that was not escaped; but
# digits before a slash are a port, and a path may contain an @.
_MARK = re.compile(
    r"(?:(?<=:)|(?<![^\s'\"]))//"
    r"(?P<user>(?!\[[\da-fA-F:.]+\])[^/\s:@]*"
    r"(?::(?!\d{1,5}[/?#])(?P<password>(?:[^\s:]|:(?!//))*))?)@"
    r"|(?P<name>(?:^|[^\w./-])[\w.-]+)\s*="
)
_VALUE = re.compile(r"\s*('[^']*'|\"[^\"]*\"|[^&;\s]+)")


def is_secret_name(name: str) -> bool:
    """Whether a variable or key has the name of a secret, such as `HF_TOKEN` or `api_key`."""
    return name.upper() != "PWD" and _SECRET_NAME.search(name) is not None


def has_password(text: str) -> bool:
    """Whether a URL or connection string contains a secret, and not `${NAME}` in its place."""
    return any(secret and not re.fullmatch(r"\$\{\w+\}", secret) for _, _, secret in _hidden(text))


def traceback_of(error: BaseException) -> str:
    """The traceback of an error, without secrets. `exc_info` of a log would show them."""
    return redact("".join(traceback.format_exception(error)).rstrip())


def redact(text: str, url: str = "") -> str:
    """The text with `***` for the user parts of its URLs, and for the values of secret parameters.

    Args:
        url: a URL as configured; values that it takes from the environment are hidden in the whole
            text.
    """
    for names in _VARIABLE.findall(url):
        value = os.environ.get(names[0] or names[1])
        text = text.replace(value, "***") if value else text
    parts, shown = [], 0
    for start, end, _ in _hidden(text):
        parts += [text[shown:start], "***"]
        shown = end
    return "".join([*parts, text[shown:]])


def _hidden(text: str) -> Iterator[tuple[int, int, str]]:
    """Start and end of each part to hide, and the secret in it; of a user without one, ''."""
    end = 0
    for found in _MARK.finditer(text):
        if found.start() < end:  # within the value before
            continue
        if found["name"] is None:
            start, end = found.span("user")
            scheme = text[max(0, found.start() - len("https:")) : found.start()].lower()
            is_token = scheme.endswith(("http:", "https:"))
            password = found["password"]
            secret = password.lstrip("@").partition("@")[0] if password else ""
            yield start, end, secret or (found["user"] if is_token and password is None else "")
        elif (_SECRET_NAME.search(found["name"]) or _PARAMETER.match(found["name"])) and (
            value := _VALUE.match(text, found.end())
        ):
            start, end = value.span(1)
            yield start, end, value[1].strip("'\"")
