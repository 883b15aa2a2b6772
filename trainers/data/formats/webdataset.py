"""WebDataset: tars in which files of one name before their extension make a sample.

`<source>/*.tar`, whose names may contain a split, or `<source>/{train,val,test}/*.tar`; in a tar
`0001.jpg` with `0001.cls` (or `0001.cls.txt`, or `0001.json` with `label` or `cls`). Class names
are in `classnames.txt` beside the tars or one folder above.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainers.data.formats.image_files import folders_in, image_extensions
from trainers.data.formats.index import (
    SPLIT_WORDS,
    SPLITS,
    Example,
    Finding,
    Index,
    LayoutOptions,
    Split,
    check_options,
    domain_name,
    join,
    parse_class_names,
    read_class_names_file,
    read_text,
    split_in_words,
)
from trainers.data.formats.readers import RangeSource, open_with_read_ahead
from trainers.data.storage import Store
from trainers.errors import ConfigError, first_line, listed

CLASS_NAMES_FILE = "classnames.txt"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_LABELS = ("cls", "cls.txt", "json")
_MAX_TEXT_BYTES = 1 << 20


@dataclass(slots=True)
class _Sample:
    """Files of one key."""

    image: RangeSource | None = None
    name: str = ""  # of the image in its tar
    texts: dict[str, str] = field(default_factory=dict)  # by extension: labels


def read_webdataset(source: Store, options: LayoutOptions) -> list[Index]:
    """Index the samples of all tars. Their images are later read from where they lie.

    Raises:
        ConfigError: no tars, compressed or broken ones, or no class names.
    """
    check_options(options, "webdataset", "domain", "split", "class_names")
    tars: dict[Split, list[str]] = {}
    folders: dict[str, Split | None] = {"": None}
    folders |= {name: SPLIT_WORDS.get(name.lower()) for name in folders_in(source)}
    for folder, split in folders.items():
        if folder and split is None:
            continue
        for info in source.list(folder):
            path = source.relative(info)
            if not info.is_file or info.base_name.startswith("."):
                continue
            if path.lower().endswith(_COMPRESSED):
                raise ConfigError(
                    f"{path} is compressed",
                    hint="decompress it, so that single images can be read; they hardly get larger",
                    source=source.url,
                )
            if path.lower().endswith(".tar"):
                named = split_in_words(info.base_name.removesuffix(".tar"))
                if split and named not in (None, split):
                    problem = f"{path} is named as the split {named!r}, but lies in {folder}"
                    raise ConfigError(problem, source=source.url)
                tars.setdefault(named or split or options.split or "train", []).append(path)
    if not tars:
        there = listed(info.base_name for info in source.list())
        problem = f"no *.tar, nor a folder train, val or test with some; there is {there}"
        raise ConfigError(problem, source=source.url)
    class_names = _class_names(source, options, tars)
    domain = domain_name(source, options)
    indexes = []
    for split in SPLITS:
        if split in tars:
            items = [item for path in tars[split] for item in _read_tar(source, path)]
            examples = tuple(item for item in items if isinstance(item, Example))
            findings = tuple(item for item in items if isinstance(item, Finding))
            metadata = {"layout": "webdataset"}
            indexes.append(Index(domain, split, class_names, examples, findings, metadata))
    return indexes


def _class_names(
    source: Store, options: LayoutOptions, tars: dict[Split, list[str]]
) -> tuple[str, ...]:
    """`--class-names`, or the lists beside the tars, which must agree, or the one above them."""
    if options.class_names:
        return read_class_names_file(options.class_names)
    folders = {path.rpartition("/")[0] for paths in tars.values() for path in paths}
    parent = source.root.rpartition("/")[0]
    above = Store(source.filesystem, parent, f"{source.url.rstrip('/')}/..")
    beside = [(source, join(folder, CLASS_NAMES_FILE)) for folder in sorted(folders | {""})]
    lists = [(store, path) for store, path in beside if store.exists(path)]
    if not lists and parent and above.exists(CLASS_NAMES_FILE):
        lists = [(above, CLASS_NAMES_FILE)]
    named = [
        parse_class_names(read_text(store, path)[0], f"{store.url}/{path}") for store, path in lists
    ]
    if not named:
        problem = f"is needed: no {CLASS_NAMES_FILE} beside the tars or one folder above"
        raise ConfigError(problem, key="--class-names", source=source.url)
    if len(set(named)) > 1:
        paths = " and ".join(path for _, path in lists)
        raise ConfigError(f"{paths} have different class names", source=source.url)
    return named[0]


def _read_tar(source: Store, path: str) -> Iterator[Example | Finding]:
    """Samples of one tar in the order of their first files, and findings about some."""
    samples: dict[str, _Sample] = {}
    try:
        with (
            open_with_read_ahead(source, path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                key, extension = _key_and_extension(member.name)
                if not extension or not member.isreg() or member.issparse():
                    continue
                sample = samples.setdefault(key, _Sample())
                if extension in sample.texts or (sample.image and extension not in _LABELS):
                    name = _printable(f"{path}/{member.name}")
                    yield Finding(name, "duplicate", "the first one is used")
                elif extension in _LABELS:
                    text = tar.extractfile(member)
                    assert text is not None
                    data = text.read(min(member.size, _MAX_TEXT_BYTES))
                    sample.texts[extension] = data.decode("utf-8", errors="replace").strip()
                else:
                    sample.image = RangeSource(path, member.offset_data, member.size)
                    sample.name = _printable(member.name.removeprefix("./"))
            # tarfile takes a broken header for the end of a tar, which is two blocks of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"broken header at byte {tar.offset}")
    except (OSError, tarfile.TarError) as error:
        problem = f"{path} cannot be read as a tar: {first_line(error)}"
        raise ConfigError(problem, source=source.url) from None
    for key, sample in samples.items():
        name = f"{_printable(path)}/{sample.name or _printable(key)}"
        given = {kind: sample.texts[kind] for kind in _LABELS if kind in sample.texts}
        labels = [
            label for kind, text in given.items() if (label := _label(text, kind)) is not None
        ]
        if sample.image is None:
            yield Finding(name, "no image", bad=True)
        elif labels:
            yield Example(sample.image, name, labels[0])
        elif given or key.rpartition(".")[0] not in samples:  # `b.seg.png` is a mask of `b`
            detail = ", ".join(f".{kind} is {text[:40]!r}" for kind, text in given.items())
            yield Finding(name, "no label", detail or "neither .cls nor .json", bad=True)


def _key_and_extension(name: str) -> tuple[str, str]:
    """Key of a file's sample, and its extension: the longest known one, such as `cls.txt`, or "".

    WebDataset cuts at the first dot, which would make `shot.2021.01.jpg` a file of unknown kind.
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    for dot in [place for place, letter in enumerate(file) if letter == "."]:
        extension = file[dot + 1 :].lower()
        if file[0] != "." and (extension in _LABELS or f".{extension}" in image_extensions()):
            return f"{folder}{slash}{file[:dot]}", extension
    return f"{folder}{slash}{file}", ""


def _label(text: str, extension: str) -> int | None:
    try:
        if extension == "json":
            content = json.loads(text)
            text = str(content.get("label", content.get("cls")))
        return int(text)
    except (ValueError, AttributeError, RecursionError):  # not JSON, not an object, nested deeply
        return None


def _printable(name: str) -> str:
    """Name of a file in UTF-8; a tar may have it in any encoding."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
