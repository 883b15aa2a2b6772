"""Where the Parquet files of each domain lie; those of the embedded benchmark are drawn."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

import platformdirs
from pyarrow import fs

from trainers.data.store import Store, open_store
from trainers.errors import ConfigError, did_you_mean, unreadable

EMBEDDED = "openmoji"

PREPARATION_FILE = "preparation.json"
"""Record of `lipsum-tune prepare` in a domain's folder, with its status."""


def draw(store: Store, parts: Collection[tuple[str, str]], *, progress: bool = False) -> None:
    """Draw the parts of the embedded benchmark that are not there yet."""
    try:
        from trainers.embedded_benchmark.build import PARTS, build
    except ImportError as error:
        problem = f"the embedded benchmark needs {error.name!r}"
        hint = "install it with: pip install 'lipsum-tune[benchmark]'"
        raise ConfigError(problem, key="data.root", value=EMBEDDED, hint=hint) from error
    build(store.local_path(), [part for part in PARTS if part in parts], progress=progress)


def stored_root(root: str) -> Store:
    """The folder of `resolve_root`, without writing anything there."""
    if root != EMBEDDED:
        return open_store(root)
    return open_store(platformdirs.user_cache_path("lipsum-tune") / EMBEDDED)


def domain_files(store: Store, domain: str, split: str) -> list[str]:
    """Paths of the Parquet files of a domain and split, in the order of their names.

    The embedded benchmark's are drawn first if they are not there.

    Raises:
        ConfigError: there are none, the domain's preparation is not done, or the root cannot be
            read.
    """
    if store == stored_root(EMBEDDED):
        draw(store, [(domain, split)])
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
        for path, kind, name in (("", "domain", domain), (domain, "split", split)):
            there = [i.base_name for i in store.list(path) if i.type == fs.FileType.Directory]
            if name not in there:
                problem = f"it has no {kind} {name!r}{did_you_mean(name, there)}"
                hint = "`lipsum-tune prepare` makes a data set of a folder of images"
                raise ConfigError(problem, hint=hint, source=f"{store.url}/{path}".rstrip("/"))
        raise ConfigError("no *.parquet file here", source=f"{store.url}/{domain}/{split}")
    except OSError as error:
        raise unreadable(error, store.url, key="data.root", value=store.url) from None


def without_split(root: str, domains: Iterable[str], split: str) -> list[str]:
    """The domains that lack a split; the embedded benchmark has them all."""
    store = stored_root(root)
    return [d for d in domains if root != EMBEDDED and not store.exists(f"{d}/{split}")]


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
