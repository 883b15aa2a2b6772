"""Folders on any file system: a local path, or a URL of a file system of Arrow or fsspec.

Credentials come from the environment (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AWS_ENDPOINT_URL` for other S3 servers). One in a URL would end up in logs and is refused.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from pyarrow import ArrowInvalid, fs

from trainers.errors import ConfigError, StorageFailed, first_line
from trainers.redact import WRITE_NAME, has_password, redact

EMBEDDED = "openmoji"
"""Root of the images that come with this package: the built-in benchmark."""

CACHE_VARIABLE = "HF_DATASETS_CACHE"
"""Environment variable of the package `datasets` for the folder of this machine's caches."""


def cache_folder() -> Path:
    """Folder of this machine's Arrow files and features, by default that of `datasets`."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get(CACHE_VARIABLE) or f"{home}/datasets").expanduser()


@dataclass(frozen=True)
class Store:
    """A folder on a file system of Arrow; paths of its methods are relative to it, with `/`."""

    filesystem: fs.FileSystem = field(hash=False)
    root: str
    """As the file system spells it, without a slash at its end."""
    url: str
    """As the user spelled it, for messages."""

    @property
    def is_local(self) -> bool:
        """Whether its files can be mapped into memory where they lie."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def local_path(self, path: str = "") -> Path:
        """The file's path on this machine; only for a local store."""
        return Path(self.full(path))

    def full(self, path: str = "") -> str:
        """The path as the file system spells it."""
        return f"{self.root}/{path}" if path else self.root

    def at(self, path: str) -> Store:
        """A folder or file within this one."""
        return Store(self.filesystem, self.full(path), url_of(self.url, path))

    def exists(self, path: str = "") -> bool:
        """Whether there is such a file or folder."""
        return bool(self.info(path).type != fs.FileType.NotFound)

    def info(self, path: str = "") -> fs.FileInfo:
        """Type, size and time of modification."""
        return self._facts(self.full(path))

    def list(self, path: str = "", *, recursive: bool = False) -> list[fs.FileInfo]:
        """Content of a folder by name; empty if there is no such folder."""
        selector = fs.FileSelector(self.full(path), recursive=recursive, allow_not_found=True)
        return sorted(self._facts(selector), key=lambda info: info.path)

    def _facts(self, of: Any) -> Any:
        try:
            return self.filesystem.get_file_info(of)
        except ValueError as error:  # of fsspec, for a name that it does not understand: hf://x
            raise ConfigError(first_line(error), source=self.url) from None

    def relative(self, file: fs.FileInfo) -> str:
        """Path of a listed file relative to this store."""
        return str(file.path).removeprefix(self.root).lstrip("/")

    def open(self, path: str) -> Any:
        """A seekable file to read from."""
        return self.filesystem.open_input_file(self.full(path))

    def read_bytes(self, path: str) -> bytes:
        """Content of a whole file."""
        with self.open(path) as stream:
            return bytes(stream.read())

    @contextmanager
    def write(self, path: str) -> Iterator[Any]:
        """A file to write to, whose folders are made.

        On a local disk it appears whole or not at all. A bucket publishes what was written when the
        file is closed, even after an error.
        """
        target = self.full(path)
        if not self.is_local:
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(target) as stream:
                yield stream
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(f"{target}.{secrets.token_hex(4)}.unfinished")
        try:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def open_store(url: str | Path | Store) -> Store:
    """The folder of a path or URL such as `s3://bucket/data`, `gs://...` or `file:///data`.

    File systems that Arrow lacks are fsspec's. `${NAME}` in a URL is taken from the environment. A
    store is returned as it is.
    """
    if isinstance(url, Store):
        return url
    text = str(url)
    if not text:
        raise ConfigError("names no folder", value=text)
    if "://" not in text:
        folder = Path(text).expanduser().absolute().as_posix()
        return Store(fs.LocalFileSystem(), folder.rstrip("/"), text)
    if has_password(text):
        problem = "credentials do not belong in a URL"
        raise ConfigError(problem, source=text, hint=WRITE_NAME)
    expanded = os.path.expandvars(text)
    try:
        try:
            filesystem, path = fs.FileSystem.from_uri(expanded)
        except (ArrowInvalid, NotImplementedError):
            other, path = fsspec.core.url_to_fs(expanded)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    except (ImportError, ValueError) as error:
        raise ConfigError(redact(str(error), text), source=text) from None
    except OSError as error:
        reason = " ".join(redact(str(error), text).split())
        raise StorageFailed(f"{redact(text)}: cannot be reached: {reason}") from None
    if not str(path).strip("/"):
        raise ConfigError("names no bucket or folder", source=text)
    return Store(filesystem, str(path).rstrip("/"), text)


def open_root(root: str | Store) -> Store:
    """The folder of `trial.data.root`: a path or URL, or that of the built-in benchmark."""
    if root != EMBEDDED:
        return open_store(root)
    folder = Path(__file__).parents[1] / "benchmark"
    return Store(fs.LocalFileSystem(), folder.as_posix(), EMBEDDED)


def url_of(folder: str, *path: str) -> str:
    """The URL or path of something in a folder; a query, as of `s3://b/x?region=eu`, stays last."""
    base, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return "/".join([base.rstrip("/"), *path]) + mark + query
