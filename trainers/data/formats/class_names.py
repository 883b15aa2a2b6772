"""Class names from a file of the user's, and checks that they differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainers.errors import ConfigError


def read_class_names_file(path: str) -> tuple[str, ...]:
    """Names in the text file of `--class-names`, one a line in the order of the labels.

    Raises:
        ConfigError: no such file, not UTF-8, a blank line, or a repeated name.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(error), key="--class-names", value=path) from None
    return parse_class_names(text, path)


def parse_class_names(text: str, where: str) -> tuple[str, ...]:
    """The lines of a text as class names; `where` names the text in messages.

    Raises:
        ConfigError: no line, a blank line, or a repeated name.
    """
    names = tuple(line.strip() for line in text.splitlines())
    if not names or "" in names:
        problem = f"line {names.index('') + 1} is blank" if names else "the file is empty"
        raise ConfigError(f"{problem}; each line is a class name", source=where)
    check_distinct(names, where)
    return names


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raise a ConfigError if two labels have the same name."""
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        if labels.setdefault(name, label) != label:
            raise ConfigError(
                f"duplicate names: the classes {labels[name]} and {label} (from 0) are both "
                f"{name!r}",
                hint="--class-names FILE can tell them apart",
                source=where,
            )


def check_distinct_in_prompts(names: Iterable[str], where: str) -> None:
    """Raise a ConfigError if two names differ only by case, underscores or hyphens.

    Prompts could not tell them apart, and a file system without case would merge their folders.
    """
    from trainers.texts.prompts import spoken  # imports open_clip and torch, which takes seconds

    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(spoken(name).casefold(), name)
        if other != name:
            raise ConfigError(
                f"duplicate names: the classes {other!r} and {name!r} are the same in a prompt",
                source=where,
            )
