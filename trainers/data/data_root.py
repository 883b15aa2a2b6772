"""Where a configuration's images lie: a folder or URL, the embedded benchmark, or sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import platformdirs
from pyarrow import fs

from trainers.data.sources import Source
from trainers.data.storage import Store, cache_folder, open_store
from trainers.errors import ConfigError, did_you_mean, listed

EMBEDDED = "openmoji"

PREPARATION_FILE = "preparation.json"
"""Record of `lipsum-tune prepare` in a domain's folder, with its status."""


def resolve_root(root: str | Mapping[str, Source], *, progress: bool = False) -> Store:
    """The folder of a path or URL, of `openmoji`, or of sources by domain, the ID domain first.

    `openmoji`, the embedded benchmark, is built in the user's cache folder if it is not there yet,
    and sources are prepared in that of `datasets`. With `progress`, as a command does once, sources
    are listed again and prepared again if they have other images than before.

    Raises:
        ConfigError: the packages of the embedded benchmark are not installed, or a source cannot be
            read.
    """
    store = stored_root(root)
    if not isinstance(root, str):
        from trainers.data.prepare import Options, prepare

        made = [(read_record(store.at(domain)) or {}).get("status") for domain in root]
        if progress or not {*made} <= {"done", "refused"}:
            prepare(root, store, Options(), id_domain=next(iter(root)), replace=True, wait=True)
    elif root == EMBEDDED:
        try:
            from trainers.embedded_benchmark.build import build
        except ImportError as error:
            raise ConfigError(
                f"the embedded benchmark needs {error.name!r}",
                key="data.root",
                value=EMBEDDED,
                hint="install it with: pip install 'lipsum-tune[benchmark]'",
            ) from error
        build(store.local_path(), progress=progress)
    return store


def stored_root(root: str | Mapping[str, Source]) -> Store:
    """The folder of `resolve_root`, without writing anything there."""
    if not isinstance(root, str):
        text = json.dumps({name: source.model_dump(mode="json") for name, source in root.items()})
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return open_store(cache_folder() / "lipsum-tune-prepared" / key)
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
        status = (read_record(store.at(domain)) or {"status": "done"}).get("status")
        if status != "done":
            problem, hint = (
                f"its preparation is {status}",
                "run the same `lipsum-tune prepare` again",
            )
            if status == "refused":
                problem = f"more bad images than may be left out, listed in {domain}/bad.csv"
                hint = "mend them, or run `lipsum-tune prepare` again with --skip-bad"
            raise ConfigError(problem, hint=hint, source=f"{store.url}/{domain}")
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


def without_split(
    root: str | Mapping[str, Source], domains: Iterable[str], split: str
) -> list[str]:
    """The domains that lack a split; the embedded benchmark has them all.

    Raises:
        ConfigError: the root cannot be read.
    """
    if root == EMBEDDED:
        return []
    store = stored_root(root)
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
        problem = "not a record of `prepare`; remove the folder and prepare it again"
        raise ConfigError(problem, source=f"{domain.url}/{PREPARATION_FILE}")
    return record
