"""Where a configuration's images lie: a folder or URL, or the embedded benchmark."""

from __future__ import annotations

import json

import platformdirs
from pyarrow import fs

from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, did_you_mean

EMBEDDED = "openmoji"

PREPARATION_FILE = "preparation.json"
"""In a domain's folder: how far `lipsum-tune prepare` has got with it."""


def resolve_root(root: str, *, progress: bool = False) -> Store:
    """The folder that `data.root` names.

    Args:
        root: a path, a URL of a file system of Arrow or fsspec, or `openmoji` for the embedded
            benchmark, which is built in the user's cache folder if it is not there yet.
        progress: show a bar while it is built.

    Raises:
        ConfigError: the embedded benchmark is wanted, but its packages are not installed.
    """
    if root != EMBEDDED:
        return open_store(root)
    try:
        from trainers.embedded_benchmark.build import build
        from trainers.embedded_benchmark.contact_sheet import contact_sheet
    except ImportError as error:
        raise ConfigError(
            f"data.root = {EMBEDDED!r}: the embedded benchmark needs {error.name!r}; "
            "install it with: pip install 'lipsum-tune[benchmark]'"
        ) from error
    folder = build(platformdirs.user_cache_path("lipsum-tune") / EMBEDDED, progress=progress)
    sheet = folder.with_name(f"{EMBEDDED}-contact-sheet.png")
    if not sheet.exists():
        contact_sheet(folder, sheet)
    return open_store(folder)


def domain_files(store: Store, domain: str, split: str) -> list[fs.FileInfo]:
    """The Parquet files of a domain and split, in the order of their names.

    Raises:
        ConfigError: names what is missing and what is there instead, or says that the domain's
            preparation is not done, or that the root cannot be reached.
    """
    try:
        files = [
            info
            for info in store.list(f"{domain}/{split}")
            if info.type == fs.FileType.File
            and info.extension == "parquet"
            and not info.base_name.startswith((".", "_"))
        ]
        _check_prepared(store, domain)
        if not files:
            raise ConfigError(_missing(store, domain, split))
    except OSError as error:
        raise ConfigError(f"data.root = {store.url!r}: cannot be read: {error}") from None
    return files


def _check_prepared(store: Store, domain: str) -> None:
    """A user's own Parquet has no such file, and needs none."""
    path = f"{domain}/{PREPARATION_FILE}"
    if not store.exists(path):
        return
    try:
        record = json.loads(store.read_bytes(path))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ConfigError(
            f"{store.url}/{path}: not a record of `prepare`; remove it, "
            "and run `lipsum-tune prepare` again if it was interrupted"
        )
    status = record.get("status")
    if status == "refused":
        raise ConfigError(
            f"{store.url}/{domain}: its preparation found more bad images than it may skip; "
            "run `lipsum-tune prepare` again with --skip-bad"
        )
    if status != "done":
        raise ConfigError(
            f"{store.url}/{domain}: its preparation is {status}; "
            "run the same `lipsum-tune prepare` again to finish it"
        )


def _missing(store: Store, domain: str, split: str) -> str:
    """What to tell somebody whose domain and split have no files."""
    if not store.exists():
        return f"data.root = {store.url!r}: no such folder"
    domains, splits = _folders(store, ""), _folders(store, domain)
    if domain not in domains:
        return f"{store.url}: it has no domain {domain!r}{did_you_mean(domain, domains)}"
    if split not in splits:
        return f"{store.url}/{domain}: it has no split {split!r}{did_you_mean(split, splits)}"
    return f"{store.url}/{domain}/{split}: no *.parquet file here"


def _folders(store: Store, path: str) -> list[str]:
    return [info.base_name for info in store.list(path) if info.type == fs.FileType.Directory]
