"""Class folders: which of their files are images, and which others could have been."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from PIL import Image
from pyarrow import fs

from trainers.data.formats.index import Finding, join
from trainers.data.storage import Store

_SKIPPED_FOLDERS = ("@eaDir", "__MACOSX")  # thumbnails and resource forks
_SKIPPED_FILES = ("readme", "license", "thumbs.db", "desktop.ini")  # first words, in lower case
_LISTS = (".txt", ".json", ".csv")  # files that describe the class folders beside them
_PARALLEL_LISTINGS = 16


@dataclass(frozen=True)
class Contents:
    """Files in a folder and the folders below it, sorted, without hidden ones."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Files whose extension is not one of an image, and linked folders, which are not followed."""
    broken_links: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Add a file as an image or another one."""
        if is_image(path):
            self.images.append(path)
        elif not path.rpartition("/")[2].lower().startswith(_SKIPPED_FILES):
            self.others.append(path)


@cache
def image_extensions() -> frozenset[str]:
    """Extensions of Pillow's image formats, in lower case with their dot."""
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if Image.MIME.get(name, "").startswith("image/")
    )


def is_image(path: str) -> bool:
    """Whether a file name has the extension of an image; hidden files have none."""
    name = path.rpartition("/")[2]
    return name[:1] != "." and name[name.rfind(".") :].lower() in image_extensions()


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


def folders_in(store: Store, path: str = "") -> list[str]:
    """Names of the folders directly in a folder, sorted, without hidden ones."""
    found = [info for info in store.list(path) if info.type == fs.FileType.Directory]
    return [info.base_name for info in found if not _is_skipped(info.base_name)]


def contents(store: Store, path: str = "", *, recursive: bool = True) -> Contents:
    """What lies in a folder; nothing if there is no such folder.

    Raises:
        UnicodeDecodeError: a name on this machine is not UTF-8.
    """
    found = Contents()
    if store.is_local:
        if store.local_path(path).is_dir():
            _walk(store, path, found, recursive)
    else:
        start = len(path) + 1 if path else 0
        for info in store.list(path, recursive=recursive):
            name = store.relative(info)
            if info.is_file and not any(map(_is_skipped, name[start:].split("/"))):
                found.add(name)
    for names in (found.images, found.others, found.broken_links):
        names.sort()
    return found


def _walk(store: Store, path: str, found: Contents, recursive: bool) -> None:
    """Add a local folder, in which Arrow would not see broken links."""
    with os.scandir(store.full(path)) as entries:
        for entry in entries:
            name = join(path, os.fsencode(entry.name).decode())
            if _is_skipped(entry.name):
                continue
            if entry.is_symlink() and not Path(entry.path).exists():
                found.broken_links.append(name)
            elif entry.is_file():
                found.add(name)
            elif entry.is_dir() and recursive and entry.is_symlink():
                found.others.append(name)  # it may lead to another class, or back to this one
            elif entry.is_dir() and recursive:
                _walk(store, name, found, recursive)


def class_images(
    store: Store, path: str, names: Sequence[str]
) -> tuple[dict[str, list[str]], list[Finding]]:
    """Images by class folder, and what else lies in `path`.

    Several folders are listed at a time, since a bucket or a file server takes long to answer.
    Images outside of the class folders and broken links are bad; other files are one finding.
    """
    top = contents(store, path, recursive=False)
    with ThreadPoolExecutor(_PARALLEL_LISTINGS) as pool:
        below = list(pool.map(partial(contents, store), [join(path, name) for name in names]))
    findings = [
        Finding(name, "no class", "it lies beside the class folders", bad=True)
        for name in top.images
    ]
    findings += [
        Finding(name, "missing file", "a broken link", bad=True)
        for part in (top, *below)
        for name in part.broken_links
    ]
    others = [name for name in top.others if not name.lower().endswith(_LISTS)]
    others += [name for part in below for name in part.others]
    if others:
        detail = f"{len(others)} of no known kind of image ignored, e.g. {others[0]}"
        findings.append(Finding(path or ".", "other files", detail))
    return {name: part.images for name, part in zip(names, below, strict=True)}, findings
