"""Folders that may lie anywhere: a local path, or a URL of a file system of Arrow or fsspec.

Credentials come from the environment (`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AWS_ENDPOINT_URL` for other S3 servers); one in a URL would end up in logs and is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from pyarrow import ArrowInvalid, fs

from trainers.errors import ConfigError
from trainers.redact import has_password


@dataclass(frozen=True)
class Store:
    """A folder on a file system; paths of its methods are relative to it, with `/`."""

    filesystem: fs.FileSystem
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
        """The path as the file system wants it."""
        return f"{self.root}/{path}" if path else self.root

    def at(self, path: str) -> Store:
        """A folder within this one."""
        return Store(self.filesystem, self.full(path), f"{self.url.rstrip('/')}/{path}")

    def exists(self, path: str = "") -> bool:
        """Whether there is such a file or folder."""
        return bool(self.info(path).type != fs.FileType.NotFound)

    def info(self, path: str = "") -> fs.FileInfo:
        """Type, size and time of modification."""
        return self.filesystem.get_file_info(self.full(path))

    def list(self, path: str = "", *, recursive: bool = False) -> list[fs.FileInfo]:
        """What lies in a folder, by name; nothing where there is no such folder."""
        selector = fs.FileSelector(self.full(path), recursive=recursive, allow_not_found=True)
        return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)

    def relative(self, info: fs.FileInfo) -> str:
        """The path of a listed file as the methods of this store take it."""
        return str(info.path.removeprefix(self.root).lstrip("/"))

    def open(self, path: str) -> Any:
        """A seekable file to read from."""
        return self.filesystem.open_input_file(self.full(path))

    def read_bytes(self, path: str) -> bytes:
        """A whole file."""
        with self.filesystem.open_input_stream(self.full(path)) as stream:
            return bytes(stream.read())

    @contextmanager
    def write(self, path: str) -> Iterator[Any]:
        """A file to write to; its folders are made.

        On a local disk it appears whole or not at all. A bucket publishes what was written when it
        is closed, even after an error.
        """
        target = self.full(path)
        if not self.is_local:  # buckets publish a file when it is closed
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(target) as stream:
                yield stream
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(f"{target}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def open_store(url: str | Path) -> Store:
    """The folder of a path or URL such as `s3://bucket/data`, `gs://...` or `file:///data`.

    Arrow's own file systems come first; those it lacks are fsspec's.

    Raises:
        ConfigError: a password in the URL, a file system that nothing here knows, or one that
            does not answer.
    """
    text = str(url)
    if "://" not in text:
        folder = Path(text).expanduser().absolute().as_posix()
        return Store(fs.LocalFileSystem(), folder.rstrip("/"), text)
    refuse_secrets(text)
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (ArrowInvalid, NotImplementedError):
        filesystem, path = _from_fsspec(text)
    except OSError as error:
        raise ConfigError(f"{text}: cannot be reached: {' '.join(str(error).split())}") from None
    return Store(filesystem, path.rstrip("/"), text)


def refuse_secrets(url: str) -> None:
    """Raise a `ConfigError`, which does not repeat it, for a password in a URL."""
    parts = urlsplit(url)
    # A user name alone is Azure's way to name a container, and no secret.
    if parts.password or has_password(f"?{parts.query}"):
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ConfigError(f"{shown}: credentials do not belong in a URL; set the environment")


def _from_fsspec(url: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), str(path)
