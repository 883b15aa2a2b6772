"""Where a configuration's images lie: a folder or URL, or the embedded benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import platformdirs
from pyarrow import fs

from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, did_you_mean, listed

EMBEDDED = "openmoji"

PREPARATION_FILE = "preparation.json"
"""Record of `lipsum-tune prepare` in a domain's folder, with its status."""


def resolve_root(root: str, *, progress: bool = False) -> Store:
    """The folder of a path, a URL of a file system of Arrow or fsspec, or `openmoji`.

    `openmoji`, the embedded benchmark, is built in the user's cache folder if it is not there yet.

    Raises:
        ConfigError: the packages of the embedded benchmark are not installed.
    """
    if root != EMBEDDED:
        return open_store(root)
    folder = stored_root(root).local_path()
    try:
        from trainers.embedded_benchmark.build import build
    except ImportError as error:
        raise ConfigError(
            f"the embedded benchmark needs {error.name!r}",
            key="data.root",
            value=EMBEDDED,
            hint="install it with: pip install 'lipsum-tune[benchmark]'",
        ) from error
    return open_store(build(folder, progress=progress))


def stored_root(root: str) -> Store:
    """The folder of `resolve_root`, without building the embedded benchmark there."""
    if root != EMBEDDED:
        return open_store(root)
    return open_store(platformdirs.user_cache_path("lipsum-tune") / EMBEDDED)


def domain_files(store: Store, domain: str, split: str) -> list[fs.FileInfo]:
    """The Parquet files of a domain and split, in the order of their names.

    Raises:
        ConfigError: there are none, the domain's preparation is not done, or the root cannot be
            read.
    """
    try:
        files = [
            info
            for info in store.list(f"{domain}/{split}")
            if info.is_file
            and info.extension == "parquet"
            and not info.base_name.startswith((".", "_"))
        ]
        # Files that the user made in another way have no record.
        record = read_record(store.at(domain)) or {"status": "done"}
        status, source = record.get("status"), f"{store.url}/{domain}"
        if status == "refused":
            problem = "its preparation found more bad images than it may skip"
            hint = "run `lipsum-tune prepare` again with --skip-bad"
            raise ConfigError(problem, hint=hint, source=source)
        if status != "done":
            problem = f"its preparation is {status}"
            hint = "run the same `lipsum-tune prepare` again to finish it"
            raise ConfigError(problem, hint=hint, source=source)
        if files:
            return files
        if not store.exists():
            hint = "`lipsum-tune prepare` writes it"
            raise ConfigError("no such folder", key="data.root", value=store.url, hint=hint)
        path = ""
        for name, kind in ((domain, "domain"), (split, "split")):
            folders = [info for info in store.list(path) if info.type == fs.FileType.Directory]
            names = [info.base_name for info in folders]
            if kind == "split" and names and not {"train", "val", "test"} & {*names}:
                problem = f"no train, val or test folder; found {listed(names, 3)}"
                hint = "`lipsum-tune prepare` makes a data set of a folder of images"
                raise ConfigError(problem, hint=hint, source=f"{store.url}/{path}")
            if name not in names:
                problem = f"it has no {kind} {name!r}{did_you_mean(name, names)}"
                raise ConfigError(problem, source=f"{store.url}/{path}".rstrip("/"))
            path = f"{path}/{name}".lstrip("/")
        raise ConfigError("no *.parquet file here", source=f"{store.url}/{path}")
    except OSError as error:
        problem = f"cannot be read: {error}"
        raise ConfigError(problem, key="data.root", value=store.url) from None


def without_split(root: str, domains: Iterable[str], split: str) -> list[str]:
    """The domains that lack a split; the embedded benchmark has them all.

    Raises:
        ConfigError: the root cannot be read.
    """
    if root == EMBEDDED:
        return []
    store = open_store(root)
    try:
        return [domain for domain in domains if not store.exists(f"{domain}/{split}")]
    except OSError as error:
        raise ConfigError(f"cannot be read: {error}", key="data.root", value=root) from None


def read_record(domain: Store) -> dict[str, Any] | None:
    """The record of `prepare` in a domain's folder, if there is one.

    Raises:
        ConfigError: it cannot be read.
    """
    if not domain.info(PREPARATION_FILE).is_file:
        return None
    try:
        record = json.loads(domain.read_bytes(PREPARATION_FILE))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        problem = (
            "not a record of `prepare`; remove it, and run `lipsum-tune prepare` again if it was "
            "interrupted"
        )
        raise ConfigError(problem, source=f"{domain.url}/{PREPARATION_FILE}")
    return record
