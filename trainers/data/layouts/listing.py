"""What a layout finds in a source: examples by domain and official split, and what is odd there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Literal

from PIL import Image
from pyarrow import fs

from trainers.data.layouts.sources import FileSource, Source
from trainers.data.storage import Store
from trainers.errors import ConfigError

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled picture that has not been read yet."""

    source: Source
    path: str
    """Its name in the data set and in reports, relative to the source."""
    label: int
    """An index into the class names; whoever reads the picture checks its range."""
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a picture, a class or a list that its owner should know."""

    path: str
    kind: str
    """One or two words, such as `truncated`, `CMYK`, `missing class`, `duplicate`."""
    detail: str = ""
    bad: bool = False
    """Whether the picture cannot be used, which counts against the ceiling of `--skip-bad`."""


@dataclass(frozen=True)
class SplitListing:
    """One official split of one domain."""

    domain: str
    split: Split
    class_names: tuple[str, ...]
    """In the order of the labels. They identify classes across domains: folder names or WordNet
    ids; how a class is spoken of in a prompt is a suite's business."""
    examples: tuple[Example, ...]
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Kept in the Parquet files, e.g. `layout`; keys that readers heed: `class_map` (JSON: a class
    of this domain to a list of ID classes) and `crop_pct` (share of a picture that evaluation
    crops, 1.0 where pictures are cropped already)."""
    border: int = 0
    """Pixels to cut off every side before anything else (ObjectNet has a red frame of 2)."""


@dataclass(frozen=True)
class LayoutOptions:
    """What a user may have to say about a source; a layout refuses what it has no use for."""

    domain: str | None = None
    """Name of the domain that is made, for layouts of a single one."""
    domains: tuple[str, ...] = ()
    """Only these, for layouts of several; none means all."""
    split: Split | None = None
    """Of pictures that no folder or file name assigns to a split."""
    deduplicate: str | None = None
    """A text file of paths to leave out, one a line."""
    class_names: str | None = None
    """A text file of class names, one a line in the order of the labels."""
    image_column: str | None = None
    label_column: str | None = None


def only(options: LayoutOptions, layout: str, *allowed: str) -> None:
    """Check that a user gave no option that the layout would not heed.

    Args:
        options: what was given.
        layout: its name, for the message.
        allowed: the fields of `LayoutOptions` that the layout reads.

    Raises:
        ConfigError: naming the option as it is written on the command line, and its value.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name in allowed or value == option.default:
            continue
        shown = ",".join(value) if isinstance(value, tuple) else value
        flags = (
            ", ".join(f"--{name.replace('_', '-')}" for name in allowed) or "none of these options"
        )
        raise ConfigError(
            f"{layout}: --{option.name.replace('_', '-')} = {shown!r}: the layout {layout} has no "
            f"use for it (it takes {flags})"
        )


_NO_PICTURES = ("@eaDir", "__MACOSX")
"""Folders of thumbnails and resource forks that file servers and archivers leave behind."""

_LISTED_AT_ONCE = 16


@cache
def picture_extensions() -> frozenset[str]:
    """The endings of Pillow's picture formats, in lower case with their dot."""
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if Image.MIME.get(name, "").startswith("image/")
    )


def is_picture(path: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files are none."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return dot > 0 and name[0] != "." and name[dot:].lower() in picture_extensions()


def picture_files(store: Store, path: str = "") -> list[str]:
    """Every picture in a folder and the folders below it, by its name, sorted.

    Hidden files and folders, thumbnails of file servers and other kinds of files are left out.

    Returns:
        Paths relative to `store`, those of `path` included.
    """
    start = len(path) + 1 if path else 0
    found = []
    for info in store.list(path, recursive=True):
        if info.type != fs.FileType.File or not is_picture(info.path):
            continue
        name = store.relative(info)
        folders = name[start:].split("/")[:-1]
        if not any(folder.startswith(".") or folder in _NO_PICTURES for folder in folders):
            found.append(name)
    return found


def folders_in(store: Store, path: str = "") -> list[str]:
    """The names of the folders that lie directly in one, sorted, without hidden ones."""
    names = [
        store.relative(info).rpartition("/")[2]
        for info in store.list(path)
        if info.type == fs.FileType.Directory
    ]
    return [name for name in names if not name.startswith(".") and name not in _NO_PICTURES]


def pictures_by_folder(store: Store, folders: Sequence[str]) -> Iterator[list[str]]:
    """`picture_files` of many folders in turn; several are listed at once.

    A class folder costs a bucket or a file server one answer's time, and ImageNet has a thousand.
    """
    with ThreadPoolExecutor(max_workers=_LISTED_AT_ONCE) as pool:
        yield from pool.map(partial(picture_files, store), folders)


def pictures_of_classes(
    store: Store, base: str, labels: Mapping[str, int]
) -> tuple[tuple[Example, ...], tuple[Finding, ...]]:
    """The pictures of class folders, by label, and what is odd about them.

    A class of `labels` without a picture is found missing, also if it has no folder; a picture
    beside the folders has no class.

    Args:
        store: the source.
        base: where the class folders lie, relative to it.
        labels: the label of each folder.

    Raises:
        ConfigError: there is no picture at all.
    """
    findings = [
        Finding(store.relative(info), "no class", "it lies beside the class folders", bad=True)
        for info in store.list(base)
        if info.type == fs.FileType.File and is_picture(info.path)
    ]
    examples: list[Example] = []
    folders = sorted(labels, key=labels.__getitem__)
    paths = [join(base, folder) for folder in folders]
    for folder, path, pictures in zip(
        folders, paths, pictures_by_folder(store, paths), strict=True
    ):
        examples += [Example(FileSource(name), name, labels[folder]) for name in pictures]
        if not pictures:
            findings.append(Finding(path, "missing class", "it has no picture"))
    if not examples:
        raise ConfigError(f"{join(store.url, base)}: no picture in any of its class folders")
    return tuple(examples), tuple(findings)


def join(*parts: str) -> str:
    """A path or URL of parts, some of which may be empty: the source itself."""
    return "/".join(part.rstrip("/") for part in parts if part)


def beside(found: Sequence[str], most: int = 5) -> str:
    """What lies in a folder instead of what was looked for, for a message."""
    if not found:
        return "nothing"
    shown = ", ".join(found[:most])
    return f"{shown} and {len(found) - most} more" if len(found) > most else shown


def read_text(store: Store, file: str) -> tuple[str, str]:
    """A list or a mapping, and the SHA-256 of the file in hexadecimal.

    Raises:
        ConfigError: it cannot be read, or is no text in UTF-8.
    """
    try:
        data = store.read_bytes(file)
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise ConfigError(f"{store.url}/{file}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{store.url}/{file}: not a text in UTF-8: {error}") from None
