"""Folders of images, a class each: what is an image there, what is none, and what leads nowhere.

Nothing that may have been meant as an image is passed over in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from PIL import Image
from pyarrow import fs

from trainers.data.formats.index import Example, Finding, join
from trainers.data.formats.readers import FileSource
from trainers.data.storage import Store
from trainers.errors import ConfigError

_NO_PICTURES = ("@eaDir", "__MACOSX")
"""Folders of thumbnails and resource forks that file servers and archivers leave behind."""

_NOTHING_LOST = ("readme", "license", "thumbs.db", "desktop.ini")
"""How files begin, in lower case, that nobody takes for images."""

_LISTS = (".txt", ".json", ".csv")
"""What lies beside class folders to describe them."""

_LISTED_AT_ONCE = 16


@dataclass(frozen=True)
class Contents:
    """The files in a folder and those below it, without hidden ones; paths as its store's."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Files whose names do not say that they are images."""
    dangling: list[str] = field(default_factory=list)
    """Links to nothing."""
    loops: list[str] = field(default_factory=list)
    """Links to a folder that they lie in; they are not followed."""


@cache
def image_extensions() -> frozenset[str]:
    """The endings of Pillow's image formats, in lower case with their dot."""
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if Image.MIME.get(name, "").startswith("image/")
    )


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image; hidden files are none."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return dot > 0 and name[0] != "." and name[dot:].lower() in image_extensions()


def folders_in(store: Store, path: str = "") -> list[str]:
    """The names of the folders that lie directly in one, sorted, without hidden ones."""
    names = [
        store.relative(info).rpartition("/")[2]
        for info in store.list(path)
        if info.type == fs.FileType.Directory
    ]
    return [name for name in names if not _is_passed_over(name)]


def image_files(store: Store, path: str = "") -> list[str]:
    """Every image in a folder and the folders below it, relative to `store`, sorted."""
    return contents(store, path).images


def contents(store: Store, path: str = "", *, recursive: bool = True) -> Contents:
    """What lies in a folder, sorted; nothing where there is no such folder.

    Raises:
        UnicodeDecodeError: a name on this machine that is no UTF-8.
    """
    found = Contents()
    if store.is_local:
        parts = path.split("/") if path else []
        above = [store.full("/".join(parts[:depth])) for depth in range(len(parts))]
        if Path(store.full(path)).is_dir():
            _walk(store, path, above, found, recursive)
    else:
        start = len(path) + 1 if path else 0
        for info in store.list(path, recursive=recursive):
            name = store.relative(info)
            if info.is_file and not any(map(_is_passed_over, name[start:].split("/"))):
                _add(name, found)
    for names in (found.images, found.others, found.dangling, found.loops):
        names.sort()
    return found


def _walk(store: Store, path: str, above: Sequence[str], found: Contents, recursive: bool) -> None:
    """Arrow would neither see links to nothing nor notice that a link leads in a circle."""
    here = store.full(path)
    if Path(here).is_symlink() and _leads_back(here, above):
        found.loops.append(path)
        return
    with os.scandir(here) as entries:
        for entry in entries:
            if _is_passed_over(entry.name):
                continue
            name = join(path, os.fsencode(entry.name).decode())
            if entry.is_symlink() and not Path(entry.path).exists():
                found.dangling.append(name)
            elif entry.is_dir():
                if recursive:
                    _walk(store, name, [*above, here], found, recursive)
            elif entry.is_file():
                _add(name, found)


def _leads_back(link: str, above: Sequence[str]) -> bool:
    target = os.path.realpath(link)
    return any(Path(os.path.realpath(folder)).is_relative_to(target) for folder in above)


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in _NO_PICTURES


def _add(path: str, found: Contents) -> None:
    if is_image(path):
        found.images.append(path)
    elif not path.rpartition("/")[2].lower().startswith(_NOTHING_LOST):
        found.others.append(path)


def contents_of(store: Store, folders: Sequence[str]) -> Iterator[Contents]:
    """`contents` of many folders in turn; several are listed at once.

    A class folder costs a bucket or a file server one answer's time, and ImageNet has a thousand.
    """
    with ThreadPoolExecutor(max_workers=_LISTED_AT_ONCE) as pool:
        yield from pool.map(partial(contents, store), folders)


def images_by_class(
    store: Store, path: str, names: Sequence[str]
) -> tuple[dict[str, list[str]], list[Finding]]:
    """The images of the class folders `names` in the folder `path`, and what else lies there.

    Images beside the class folders and links to nothing are bad; files of no known kind of
    image are counted in one finding.
    """
    top = contents(store, path, recursive=False)
    below = list(contents_of(store, [join(path, name) for name in names]))
    findings = [
        Finding(name, "no class", "it lies beside the class folders", bad=True)
        for name in top.images
    ]
    for part in (top, *below):
        findings += [
            Finding(name, "missing file", "a link to nothing", bad=True) for name in part.dangling
        ]
        findings += [
            Finding(name, "looping link", "it leads to a folder around it, so it is not followed")
            for name in part.loops
        ]
    others = [name for name in top.others if not name.lower().endswith(_LISTS)]
    others += [name for part in below for name in part.others]
    if others:
        detail = f"{len(others)} of no known kind of image ignored, e.g. {others[0]}"
        findings.append(Finding(path or ".", "other files", detail))
    images = {name: part.images for name, part in zip(names, below, strict=True)}
    return images, findings


def images_of_classes(
    store: Store, base: str, path: str, labels: Mapping[str, int]
) -> tuple[tuple[Example, ...], tuple[Finding, ...]]:
    """The images of class folders, by label, and what is odd about them.

    A class of `labels` without an image is found missing, also if it has no folder; an image
    beside the folders has no class. Examples and findings are named relative to `base`, so that
    they are called the same whether the source is the data set or the folder that holds it.

    Args:
        store: the source.
        base: the data set's own folder, relative to the source.
        path: where the class folders lie, relative to `base`.
        labels: the label of each folder.

    Raises:
        ConfigError: there is no image at all.
    """
    folders = sorted(labels, key=labels.__getitem__)
    data_set = store.at(base) if base else store
    images, findings = images_by_class(data_set, path, folders)
    examples = tuple(
        Example(FileSource(join(base, name)), name, labels[folder])
        for folder, names in images.items()
        for name in names
    )
    findings += [
        Finding(join(path, folder), "missing class", "it has no image")
        for folder, names in images.items()
        if not names
    ]
    if not examples:
        raise ConfigError(f"{join(store.url, base, path)}: no image in any of its class folders")
    return examples, tuple(findings)
