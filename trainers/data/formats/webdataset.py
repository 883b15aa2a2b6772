"""WebDataset: tars in which files of one name before their extension make a sample.

`<source>/*.tar`, whose names may speak of a split, or `<source>/{train,val,test}/*.tar`; in a tar
`0001.jpg` with `0001.cls` (or `0001.cls.txt`, or `0001.json` with `label` or `cls`) and perhaps
`0001.txt`, a caption. Class names stand in `classnames.txt` beside the tars or one folder above.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pyarrow import fs

from trainers.data.formats.class_folders import folders_in, image_extensions
from trainers.data.formats.class_names import parse_class_names, read_class_names_file
from trainers.data.formats.index import (
    Example,
    Finding,
    LayoutOptions,
    Split,
    SplitListing,
    beside,
    only,
)
from trainers.data.formats.naming import SPLIT_WORDS, SPLITS, domain_of, split_in_words
from trainers.data.formats.readers import RangeSource, open_with_read_ahead
from trainers.data.storage import Store
from trainers.errors import ConfigError, first_line

CLASS_NAMES_FILE = "classnames.txt"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_LABELS = ("cls", "cls.txt", "json")
_CAPTION = "txt"
_TEXTS = (*_LABELS, _CAPTION)


@dataclass(slots=True)
class _Sample:
    """The files of one key, as far as they have been met."""

    image: RangeSource | None = None
    name: str = ""
    """Of the image in its tar."""
    texts: dict[str, str] = field(default_factory=dict)
    """By extension: labels and caption."""


def webdataset(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """List the samples of all tars, whose images are later read from where they lie.

    Raises:
        ConfigError: no tars, compressed or broken ones, or no names of the classes.
    """
    only(options, "webdataset", "domain", "split", "class_names")
    tars = _tars(source, options)
    class_names = _class_names(source, options, tars)
    domain = domain_of(source, options)
    return [
        _list_split(source, domain, split, tars[split], class_names)
        for split in SPLITS
        if split in tars
    ]


def _list_split(
    source: Store, domain: str, split: Split, tars: list[str], class_names: tuple[str, ...]
) -> SplitListing:
    examples, findings = [], []
    for item in chain.from_iterable(_list_tar(source, path) for path in tars):
        if isinstance(item, Example):
            examples.append(item)
        else:
            findings.append(item)
    return SplitListing(
        domain, split, class_names, tuple(examples), tuple(findings), {"layout": "webdataset"}
    )


def _tars(source: Store, options: LayoutOptions) -> dict[Split, list[str]]:
    found: dict[Split, list[str]] = {}
    for path in _tars_in(source, ""):
        found.setdefault(_split_in_name(path) or options.split or "train", []).append(path)
    for folder in folders_in(source):
        if split := SPLIT_WORDS.get(folder.lower()):
            for path in _tars_in(source, folder):
                _refuse_another_split(source, path, split)
                found.setdefault(split, []).append(path)
    if not found:
        there = [source.relative(info) for info in source.list()]
        raise ConfigError(
            f"{source.url}: no *.tar, nor a folder train, val or test with some; "
            f"there is {beside(there)}"
        )
    return found


def _split_in_name(path: str) -> Split | None:
    return split_in_words(path.rpartition("/")[2][: -len(".tar")])


def _refuse_another_split(source: Store, path: str, split: Split) -> None:
    named = _split_in_name(path)
    if named not in (None, split):
        raise ConfigError(
            f"{source.url}: {path} lies in the folder of the split {split!r} and is named as one "
            f"of {named!r}; move or rename it"
        )


def _tars_in(source: Store, folder: str) -> list[str]:
    files = [info for info in source.list(folder) if info.type == fs.FileType.File]
    paths = [source.relative(info) for info in files if not info.base_name.startswith(".")]
    for path in paths:
        if path.lower().endswith(_COMPRESSED):
            raise ConfigError(
                f"{source.url}: {path} is compressed, and images are read from where they lie "
                "in a tar; decompress it first (images hardly get larger)"
            )
    return [path for path in paths if path.lower().endswith(".tar")]


def _class_names(
    source: Store, options: LayoutOptions, tars: dict[Split, list[str]]
) -> tuple[str, ...]:
    if options.class_names:
        return read_class_names_file(options.class_names)
    folders = {path.rpartition("/")[0] for paths in tars.values() for path in paths}
    texts = {}
    for folder in sorted(folders | {""}):
        path = f"{folder}/{CLASS_NAMES_FILE}" if folder else CLASS_NAMES_FILE
        if source.exists(path):
            texts[path] = source.read_bytes(path)
    if not texts and (above := _file_above(source)) is not None:
        texts[f"../{CLASS_NAMES_FILE}"] = above
    if not texts:
        raise ConfigError(
            f"{source.url}: --class-names is missing: there is no {CLASS_NAMES_FILE} beside the "
            "tars or one folder above to say what their labels mean"
        )
    named = {path: _parse(source, path, text) for path, text in texts.items()}
    (first, names), *others = named.items()
    for path, other_names in others:
        if other_names != names:
            raise ConfigError(f"{source.url}: {first} and {path} name different classes")
    return names


def _parse(source: Store, path: str, data: bytes) -> tuple[str, ...]:
    try:
        return parse_class_names(data.decode("utf-8-sig"), f"{source.url}: {path}")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source.url}: {path}: {error}") from None


def _file_above(source: Store) -> bytes | None:
    parent = source.root.rpartition("/")[0]
    above = Store(source.filesystem, parent, f"{source.url.rstrip('/')}/..")
    if not parent or not above.exists(CLASS_NAMES_FILE):
        return None
    return above.read_bytes(CLASS_NAMES_FILE)


def _list_tar(source: Store, path: str) -> Iterator[Example | Finding]:
    """The samples of one tar in the order of their first files, and what is wrong with some."""
    samples: dict[str, _Sample] = {}
    try:
        with (
            open_with_read_ahead(source, path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in _regular_files(tar):
                key, extension = _key_and_extension(member.name)
                if not extension:
                    continue
                if not _add(samples.setdefault(key, _Sample()), path, member, extension, tar):
                    name = _printable(f"{path}/{member.name}")
                    yield Finding(name, "duplicate", "the first one is used")
            _refuse_a_broken_end(file, tar.offset)
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(
            f"{source.url}: {path} cannot be read as a tar: {first_line(error)}"
        ) from None
    for key, sample in samples.items():
        judged = _judged(_printable(path), _printable(key), sample)
        if not any(shorter in samples for shorter in _cut_at_dots(key)):
            yield judged
        elif isinstance(judged, Example):  # `b.seg.png` is another image of the sample `b`
            yield Finding(judged.path, "unclear name", "its own sample, or the other's?", bad=True)


def _regular_files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep every header
        if member.isreg() and not member.issparse():
            yield member


def _refuse_a_broken_end(file: Any, offset: int) -> None:
    """`tarfile` takes a broken header for the end of a tar, which is two blocks of zeros."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"broken header at byte {offset}")


def _key_and_extension(name: str) -> tuple[str, str]:
    """A file's sample, and its extension if it is a known one: the longest, as in `a.cls.txt`.

    WebDataset cuts at the first dot, which would make `shot.2021.01.jpg` a file of unknown kind.
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    dots = [place for place, letter in enumerate(file) if letter == "."]
    for dot in dots if file[:1] != "." else ():
        extension = file[dot + 1 :].lower()
        if extension in _TEXTS or f".{extension}" in image_extensions():
            return f"{folder}{slash}{file[:dot]}", extension
    return f"{folder}{slash}{file}", ""


def _cut_at_dots(key: str) -> Iterator[str]:
    """The samples that a file of this name could belong to as one of several images."""
    start = key.rfind("/") + 1
    return (key[:end] for end in range(start, len(key)) if key[end] == ".")


def _printable(name: str) -> str:
    """A tar's name of a file in UTF-8; it may be in any encoding."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _add(
    sample: _Sample, path: str, member: tarfile.TarInfo, extension: str, tar: tarfile.TarFile
) -> bool:
    """Put a file into its sample; False where the sample has such a file already."""
    if extension in _TEXTS:
        if extension in sample.texts:
            return False
        file: Any = tar.extractfile(member)
        sample.texts[extension] = file.read().decode("utf-8", errors="replace").strip()
        return True
    if sample.image is not None:
        return False
    sample.image = RangeSource(path, member.offset_data, member.size)
    sample.name = _printable(member.name.removeprefix("./"))
    return True


def _label(text: str, extension: str) -> int | None:
    if extension == "json":
        try:
            content = json.loads(text)
        except ValueError:
            return None
        if not isinstance(content, dict):
            return None
        text = str(content.get("label", content.get("cls")))
    try:
        return int(text)
    except ValueError:
        return None


def _judged(path: str, key: str, sample: _Sample) -> Example | Finding:
    if sample.image is None:
        return Finding(f"{path}/{key}", "no image", bad=True)
    name = f"{path}/{sample.name}"
    said = {kind: sample.texts[kind] for kind in _LABELS if kind in sample.texts}
    label = next((n for kind, text in said.items() if (n := _label(text, kind)) is not None), None)
    if label is None:
        detail = ", ".join(f".{kind} says {text[:40]!r}" for kind, text in said.items())
        return Finding(name, "no label", detail or "neither .cls nor .json", bad=True)
    return Example(sample.image, name, label, sample.texts.get(_CAPTION))
