"""Names of classes that a user gives in a file, and that names are told apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainers.errors import ConfigError


def read_class_names_file(path: str) -> tuple[str, ...]:
    """The names in the text file of `--class-names`, one a line in the order of the labels.

    Raises:
        ConfigError: no such file, no UTF-8, a blank line, or a name that stands there twice.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class-names = {path!r}: {error}") from None
    return parse_class_names(text, path)


def parse_class_names(text: str, where: str) -> tuple[str, ...]:
    """The lines of a text as names of classes; `where` names the text in messages.

    Raises:
        ConfigError: nothing in it, a blank line, or a name that stands there twice.
    """
    names = [line.strip() for line in text.splitlines()]
    lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise ConfigError(
                f"{where}: line {number} is blank, and every line is the name of a class"
            )
        if name in lines:
            raise ConfigError(
                f"{where}: duplicate names: {name!r} stands in lines {lines[name]} and {number}"
            )
        lines[name] = number
    if not names:
        raise ConfigError(f"{where}: the file is empty; it names one class a line")
    return tuple(names)


def refuse_duplicates(names: Iterable[str], where: str) -> None:
    """Check that every class has a name of its own.

    Raises:
        ConfigError: naming the class and both its labels.
    """
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        if name in labels:
            raise ConfigError(
                f"{where}: duplicate names: the classes {labels[name]} and {label} are both "
                f"{name!r}; --class-names FILE can tell them apart"
            )
        labels[name] = label


def refuse_names_spoken_alike(names: Iterable[str], where: str) -> None:
    """Check that no two classes differ by case, underscores or hyphens alone.

    In a prompt these would be one, and a file system without case would merge their folders.

    Raises:
        ConfigError: naming both.
    """
    from trainers.texts.prompts import (
        spoken,  # brings open_clip and torch, seconds that others save
    )

    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(spoken(name).casefold(), name)
        if other != name:
            raise ConfigError(
                f"{where}: duplicate names: the classes {other!r} and {name!r} are spoken alike"
            )
