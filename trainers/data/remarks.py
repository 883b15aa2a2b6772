"""What is odd about prepared images, from labels and the list of duplicates; nothing is decoded."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from typing import Any

from trainers.data.domain_files import domain_files
from trainers.data.schema import split_header
from trainers.data.store import Store, open_root
from trainers.errors import listed

DUPLICATES = "duplicates.csv"
"""In the root of prepared data, written by `prepare`."""


def remarks_on(root: str, parts: Iterable[tuple[str, str]]) -> list[str]:
    """`remarks` on the images of a configuration."""
    return remarks(open_root(root), parts)


def remarks(store: Store, parts: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each domain that lacks classes in all these splits, and for splits that share
    images.

    Args:
        parts: domain and split; those that do not exist are passed over.

    Raises:
        ConfigError: data that cannot be read.
    """
    headers: dict[str, list[Any]] = {}
    for domain, split in parts:
        if store.exists(f"{domain}/{split}"):
            header = split_header(store, domain_files(store, domain, split))
            headers.setdefault(domain, []).append(header)
    lines = []
    for domain, of_domain in headers.items():
        names, found = of_domain[0].class_names, set.union(*({*h.labels} for h in of_domain))
        if lacking := [name for label, name in enumerate(names) if label not in found]:
            number = f"{len(lacking)} of {len(names)} classes"
            lines.append(f"{domain}: no images of {number}: {listed(lacking)}")
    if store.info(DUPLICATES).is_file:
        rows = csv.reader(store.read_bytes(DUPLICATES).decode(errors="replace").splitlines()[1:])
        for (one, other), times in Counter(tuple(row[:2]) for row in rows).items():
            if {one.split("/")[0], other.split("/")[0]} <= headers.keys():
                images = f"{times:,} images are" if times > 1 else "1 image is"
                where = store.locate(DUPLICATES)
                lines.append(f"{one} and {other}: {images} byte for byte the same, see {where}")
    return lines
