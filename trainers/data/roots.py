"""What lies in a data root: Parquet files by domain and split, their fingerprint, what is odd.

Images are not decoded here. All functions raise a ConfigError if a split is missing, or a file of
it is not such a Parquet file.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pyarrow import fs

from trainers.data.config import DataConfig
from trainers.data.schema import Header, read_headers, split_header
from trainers.data.store import Store, open_root
from trainers.errors import ConfigError, did_you_mean, listed, unreadable

PREPARATION_FILE = "preparation.json"
"""Record of `lipsum-tune prepare` in a domain's folder, with its status."""

DUPLICATES = "duplicates.csv"
"""In the root of prepared data, written by `prepare`."""


def domain_files(store: Store, domain: str, split: str) -> list[str]:
    """Paths of the Parquet files of a domain and split, in the order of their names."""
    try:
        files = [
            store.relative(info)
            for info in store.list(f"{domain}/{split}")
            if info.extension == "parquet" and not info.base_name.startswith((".", "_"))
        ]
        # Files that the user made in another way have no record.
        status = (read_record(store.at(domain)) or {"status": "done"}).get("status")
        if status != "done":
            problem, hint = f"its preparation is {status}", "run the same `prepare` again"
            raise ConfigError(problem, hint=hint, source=f"{store.url}/{domain}")
        if not files:
            raise _missing(store, domain, split)
        return files
    except OSError as error:
        raise unreadable(error, store.url, key="data.root", value=store.url) from None


def _missing(store: Store, domain: str, split: str) -> ConfigError:
    """Which folder is not there: the root, the domain in it, or the split in that."""
    if not store.exists():
        hint = "`lipsum-tune prepare` writes it"
        return ConfigError("no such folder", key="data.root", value=store.url, hint=hint)
    hint = "`lipsum-tune prepare` makes a data set of a folder of images"
    domains = _folders(store)
    if domain not in domains:
        problem = f"it has no domain {domain!r}{did_you_mean(domain, domains)}"
        return ConfigError(problem, hint=hint, source=store.url)
    splits = _folders(store, domain)
    if split not in splits:
        problem = f"it has no split {split!r}{did_you_mean(split, splits)}"
        if others := [name for name in domains if store.exists(f"{name}/{split}")]:
            hint = f"only {listed(others)} has one"
            if split == "train":
                hint += "; set data.id_domain"
        return ConfigError(problem, hint=hint, source=f"{store.url}/{domain}")
    return ConfigError("no *.parquet file here", source=f"{store.url}/{domain}/{split}")


def _folders(store: Store, path: str = "") -> list[str]:
    return [info.base_name for info in store.list(path) if info.type == fs.FileType.Directory]


def without_split(root: str, domains: Iterable[str], split: str) -> list[str]:
    """The domains that lack a split."""
    store = open_root(root)
    return [domain for domain in domains if not store.exists(f"{domain}/{split}")]


def read_record(domain: Store) -> dict[str, Any] | None:
    """The record of `prepare` in a domain's folder, if there is one."""
    if not domain.info(PREPARATION_FILE).is_file:
        return None
    try:
        return dict(json.loads(domain.read_bytes(PREPARATION_FILE)))
    except (ValueError, TypeError, RecursionError):
        problem, hint = "is damaged", "remove the folder, and prepare the domain again"
        raise ConfigError(problem, hint=hint, source=domain.at(PREPARATION_FILE).url) from None


def data_fingerprint(data: DataConfig) -> dict[str, str]:
    """Hash for each domain and split that a trial reads, by names such as `real/train`."""
    store = open_root(data.root)
    return {"/".join(part): split_fingerprint(store, *part) for part in data.trial_parts}


def image_counts(data: DataConfig, split: str) -> dict[str, int]:
    """Number of images of each domain in a split, from the Parquet footers."""
    store = open_root(data.root)
    headers = {d: read_headers(store, domain_files(store, d, split)) for d in data.domains}
    return {domain: sum(header.rows for header in found) for domain, found in headers.items()}


def split_fingerprint(store: Store, domain: str, split: str) -> str:
    """Hash of the class names, sizes and statistics in the Parquet footers of a split.

    Images are not read, since that would take longer than many a trial. The hash does not depend on
    where the files lie.
    """
    headers = read_headers(store, domain_files(store, domain, split))
    return hashlib.sha256("".join(h.content for h in headers).encode()).hexdigest()[:16]


def remarks(root: str | Store, parts: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each domain that lacks classes in all these splits, and for splits that share
    images. Splits that do not exist are passed over.
    """
    store = open_root(root)
    headers: dict[str, list[Header]] = {}
    for domain, split in parts:
        if store.exists(f"{domain}/{split}"):
            header = split_header(store, domain_files(store, domain, split))
            headers.setdefault(domain, []).append(header)
    lines = []
    for domain, of_domain in headers.items():
        names = of_domain[0].class_names
        found = set.union(*({*header.labels} for header in of_domain))
        if lacking := [name for label, name in enumerate(names) if label not in found]:
            number = f"{len(lacking)} of {len(names)} classes"
            lines.append(f"{domain}: no images of {number}: {listed(lacking)}")
    if store.info(DUPLICATES).is_file:
        rows = csv.reader(store.read_bytes(DUPLICATES).decode(errors="replace").splitlines()[1:])
        for (one, other), times in Counter(tuple(row[:2]) for row in rows).items():
            if {one.split("/")[0], other.split("/")[0]} <= headers.keys():
                images = f"{times:,} images are" if times > 1 else "1 image is"
                where = store.at(DUPLICATES).url
                lines.append(f"{one} and {other}: {images} byte for byte the same, see {where}")
    return lines
