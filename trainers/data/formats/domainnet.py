"""DomainNet as its authors publish it: a folder a domain, and lists of paths and labels.

A source holds `<domain>/<class>/*` and the official lists `<domain>_train.txt` and
`<domain>_test.txt`, beside the folders or in a folder `splits`. The lists alone say which images
there are, in which split, and in which order the classes go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from pathlib import PurePosixPath
from typing import Final, Literal

from pyarrow import fs

from trainers.data.formats.index import (
    Example,
    Finding,
    LayoutOptions,
    SplitListing,
    beside,
    join,
    only,
    read_text,
)
from trainers.data.formats.naming import chosen_domains
from trainers.data.formats.readers import FileSource
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError

DOMAINS: Final = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

_ListedSplit = Literal["train", "test"]
_SPLITS: Final[tuple[_ListedSplit, ...]] = ("train", "test")
_LIST_FOLDERS = ("", "splits")


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a list."""

    number: int
    path: str
    label: int

    @property
    def folder(self) -> str:
        return self.path.split("/")[1]


@dataclass(frozen=True)
class _PathList:
    """One official list."""

    file: str
    domain: str
    split: _ListedSplit
    lines: tuple[_Line, ...]
    sha256: str


@dataclass(frozen=True)
class _LeftOut:
    """The paths of `--deduplicate`; none without it."""

    paths: frozenset[str] = frozenset()
    sha256: str = ""
    unknown: tuple[Finding, ...] = ()
    """Says how many of them no list has."""


def domainnet(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """The official train and test splits of each domain.

    Class names are the folders' names in the order of the labels, over all lists that are there,
    so that they do not depend on which domains are asked for.

    Raises:
        ConfigError: no lists, an unknown domain, a line that is none, labels and folders that do
            not go together, labels without a class, a file of duplicates that is about other data.
    """
    only(options, "domainnet", "domains", "deduplicate")
    lists = _read_lists(source)
    there = sorted({entry.domain for entry in lists})
    domains = chosen_domains(source, there, options.domains)
    class_names = _class_names(source, lists)
    left_out = _paths_to_leave_out(options.deduplicate, lists)
    listings: list[SplitListing] = []
    for domain in domains:
        its = [entry for entry in lists if entry.domain == domain]
        listings += _domain(source, its, class_names, left_out)
    first, *others = listings
    return [replace(first, findings=(*left_out.unknown, *first.findings)), *others]


def _read_lists(source: Store) -> list[_PathList]:
    wanted = {f"{domain}_{split}.txt": (domain, split) for domain in DOMAINS for split in _SPLITS}
    for folder in _LIST_FOLDERS:
        names = {info.base_name for info in source.list(folder)}
        files = [name for name in wanted if name in names]
        if files:
            return [_read_list(source, join(folder, name), *wanted[name]) for name in files]
    found = [info.base_name for info in source.list()]
    raise ConfigError(
        f"{source.url}: no official list of DomainNet such as real_train.txt, there or in splits/; "
        f"there is {beside(found)}"
    )


def _read_list(source: Store, file: str, domain: str, split: _ListedSplit) -> _PathList:
    """One list.

    Raises:
        ConfigError: naming the first line that is not `<domain>/<class>/<file> <label>`.
    """
    text, sha256 = read_text(source, file)
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        path, label = (part.strip() for part in line.strip().rpartition(" ")[::2])
        parts = path.split("/")
        whole = len(parts) == 3 and parts[0] == domain and not {"", ".", ".."} & set(parts)
        if not whole or not (label.isascii() and label.isdecimal()):
            raise ConfigError(
                f"{source.url}/{file}, line {number}: {line.strip()!r} is not a path and a label "
                f"such as '{domain}/tiger/{domain}_320_000001.jpg 320'"
            )
        lines.append(_Line(number, path, int(label)))
    if not lines:
        raise ConfigError(f"{source.url}/{file}: the list is empty")
    return _PathList(file, domain, split, tuple(lines), sha256)


def _class_names(source: Store, lists: Sequence[_PathList]) -> tuple[str, ...]:
    """The folders' names by label; a folder may be spelled in another case elsewhere.

    Raises:
        ConfigError: a label with two folders, a folder with two labels, or a label without any.
    """
    folders: dict[int, str] = {}
    labels: dict[str, int] = {}
    for entry in lists:
        for line in entry.lines:
            folder = folders.setdefault(line.label, line.folder)
            label = labels.setdefault(line.folder.casefold(), line.label)
            if folder.casefold() == line.folder.casefold() and label == line.label:
                continue
            before = (
                f"folder {line.folder!r} has label {label}"
                if label != line.label
                else f"label {label} is folder {folder!r}"
            )
            raise ConfigError(
                f"{source.url}/{entry.file}, line {line.number}: label {line.label} with folder "
                f"{line.folder!r}, but in the lines and lists before, {before}"
            )
    unnamed = next(label for label in count() if label not in folders)
    if unnamed < max(folders):
        raise ConfigError(
            f"{source.url}: no list has an image of label {unnamed}, so its class has no name; "
            f"labels go up to {max(folders)}"
        )
    return tuple(folders[label] for label in range(len(folders)))


def _paths_to_leave_out(file: str | None, lists: Iterable[_PathList]) -> _LeftOut:
    """What the user's list of duplicates names.

    Raises:
        ConfigError: the file cannot be read, or no official list has any of its paths.
    """
    if file is None:
        return _LeftOut()
    folder, slash, name = file.rpartition("/")
    text, sha256 = read_text(open_store(folder or slash or "."), name)
    paths = [line.strip().removeprefix("./") for line in text.split("\n") if line.strip()]
    listed = {line.path for entry in lists for line in entry.lines}
    unknown = [path for path in paths if path not in listed]
    if len(unknown) == len(paths):
        raise ConfigError(
            f"domainnet: --deduplicate = {file!r}: no list has any of its {len(paths)} paths "
            f"({beside(paths, most=1)}); they look like 'real/tiger/real_320_000001.jpg'"
        )
    if not unknown:
        return _LeftOut(frozenset(paths), sha256)
    detail = f"no list has {len(unknown)} of the {len(paths)} paths, e.g. {unknown[0]}"
    return _LeftOut(frozenset(paths), sha256, (Finding(name, "unknown duplicates", detail),))


def _domain(
    source: Store, lists: Sequence[_PathList], class_names: tuple[str, ...], left_out: _LeftOut
) -> Iterator[SplitListing]:
    """The listings of one domain; an image that is in both lists stays in test alone."""
    domain = lists[0].domain
    files = _files(source, domain)
    in_test = {line.path for entry in lists if entry.split == "test" for line in entry.lines}
    listed = {line.path for entry in lists for line in entry.lines}
    metadata = {
        "layout": "domainnet",
        "lists_sha256": " ".join(f"{PurePosixPath(e.file).name}:{e.sha256}" for e in lists),
        "deduplicated": str(len(listed & left_out.paths)),
    }
    if left_out.sha256:
        metadata["deduplicate_sha256"] = left_out.sha256
    missing = [
        Finding(f"{domain}_{split}.txt", "missing list", f"{domain} has no {split} split")
        for split in _SPLITS
        if split not in {entry.split for entry in lists}
    ]
    for entry in lists:
        excluded = in_test if entry.split == "train" else frozenset[str]()
        examples, findings = _images(entry, files, excluded, left_out.paths)
        findings = [*missing, *findings, *_missing_classes(entry, examples, class_names)]
        yield SplitListing(
            domain, entry.split, class_names, tuple(examples), tuple(findings), metadata
        )


def _files(source: Store, domain: str) -> frozenset[str]:
    """Every file of a domain: one listing instead of a question for each image."""
    infos = source.list(domain, recursive=True)
    if not infos:
        found = [info.base_name for info in source.list()]
        raise ConfigError(
            f"{source.url}: there is a list of {domain}, but its folder {domain}/ is not there or "
            f"empty; there is {beside(found)}"
        )
    return frozenset(source.relative(info) for info in infos if info.type == fs.FileType.File)


def _images(
    entry: _PathList, files: Set[str], in_test: Set[str], left_out: Set[str]
) -> tuple[list[Example], list[Finding]]:
    examples: list[Example] = []
    findings: list[Finding] = []
    seen: set[str] = set()
    for line in entry.lines:
        path = line.path
        if path in seen:
            findings.append(Finding(path, "duplicate", f"listed again in {entry.file}; taken once"))
        elif path in left_out:
            findings.append(Finding(path, "deduplicated", "left out as --deduplicate says"))
        elif path in in_test:
            findings.append(Finding(path, "in train and test", "left out of train"))
        elif path not in files:
            findings.append(Finding(path, "missing file", f"{entry.file} lists it", bad=True))
        else:
            examples.append(Example(FileSource(path), path, line.label))
        seen.add(path)
    return examples, findings


def _missing_classes(
    entry: _PathList, examples: Iterable[Example], class_names: Sequence[str]
) -> list[Finding]:
    present = {example.label for example in examples}
    return [
        Finding(f"{entry.domain}/{name}", "missing class", f"{entry.file} has no image of it")
        for label, name in enumerate(class_names)
        if label not in present
    ]
