"""How folders and files spell domains and splits, and what a domain is called if nobody says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import get_args

from trainers.data.formats.index import LayoutOptions, Split
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean

SPLITS: tuple[Split, ...] = get_args(Split)
"""In the order in which layouts list them."""

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What people call their splits, in lower case."""

_WORD_BOUNDARIES = re.compile(r"[^a-z0-9]+")


def split_in_words(name: str) -> Split | None:
    """The split that a file's name speaks of: `validation-00000-of-00005` is `val`."""
    words = _WORD_BOUNDARIES.split(name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def domain_of(source: Store, options: LayoutOptions) -> str:
    """`--domain`, or else the name of the source's folder.

    Raises:
        ConfigError: the source is the root of a file system, which has no name.
    """
    name = options.domain or source.root.rpartition("/")[2]
    if not name:
        raise ConfigError(f"{source.url}: --domain is missing: this folder has no name to use")
    return name


def chosen_domains(source: Store, found: Iterable[str], wanted: Collection[str]) -> list[str]:
    """Those of `found` that `--domains` asks for, in the order found; none or `all` means all.

    Raises:
        ConfigError: a domain that is not there.
    """
    names = list(found)
    if not wanted or list(wanted) == ["all"]:
        return names
    for domain in wanted:
        if domain not in names:
            raise ConfigError(
                f"{source.url}: --domains = {domain!r} is not there{did_you_mean(domain, names)}"
            )
    return [name for name in names if name in wanted]
