"""Where the Parquet files of each domain lie."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pyarrow import fs

from trainers.data.store import Store, open_root
from trainers.errors import ConfigError, did_you_mean, listed, unreadable

PREPARATION_FILE = "preparation.json"
"""Record of `lipsum-tune prepare` in a domain's folder, with its status."""


def domain_files(store: Store, domain: str, split: str) -> list[str]:
    """Paths of the Parquet files of a domain and split, in the order of their names.

    Raises:
        ConfigError: there are none, the domain's preparation is not done, or the root cannot be
            read.
    """
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
        if files:
            return files
        if not store.exists():
            hint = "`lipsum-tune prepare` writes it"
            raise ConfigError("no such folder", key="data.root", value=store.url, hint=hint)
        domains, splits = _folders(store), _folders(store, domain)
        hint = "`lipsum-tune prepare` makes a data set of a folder of images"
        if domain not in domains:
            problem = f"it has no domain {domain!r}{did_you_mean(domain, domains)}"
            raise ConfigError(problem, hint=hint, source=store.url)
        if split not in splits:
            problem = f"it has no split {split!r}{did_you_mean(split, splits)}"
            if others := [name for name in domains if store.exists(f"{name}/{split}")]:
                hint = f"only {listed(others)} has one"
                if split == "train":
                    hint += ": the ID domain, data.id_domain, is trained on"
            raise ConfigError(problem, hint=hint, source=f"{store.url}/{domain}")
        raise ConfigError("no *.parquet file here", source=f"{store.url}/{domain}/{split}")
    except OSError as error:
        raise unreadable(error, store.url, key="data.root", value=store.url) from None


def _folders(store: Store, path: str = "") -> list[str]:
    return [info.base_name for info in store.list(path) if info.type == fs.FileType.Directory]


def without_split(root: str, domains: Iterable[str], split: str) -> list[str]:
    """The domains that lack a split."""
    store = open_root(root)
    return [domain for domain in domains if not store.exists(f"{domain}/{split}")]


def read_record(domain: Store) -> dict[str, Any] | None:
    """The record of `prepare` in a domain's folder, if there is one.

    Raises:
        ConfigError: it is damaged.
    """
    if not domain.info(PREPARATION_FILE).is_file:
        return None
    try:
        return dict(json.loads(domain.read_bytes(PREPARATION_FILE)))
    except (ValueError, TypeError, RecursionError):
        problem, hint = "is damaged", "remove the folder, and prepare the domain again"
        raise ConfigError(problem, hint=hint, source=domain.locate(PREPARATION_FILE)) from None
