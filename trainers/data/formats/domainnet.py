"""DomainNet as its authors publish it: a folder for each domain, and lists of paths and labels.

A source holds `<domain>/<class>/*` and the official lists `<domain>_train.txt` and
`<domain>_test.txt`, beside the folders or in a folder `splits`. The lists alone define which images
there are, in which split, and the order of the classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from trainers.data.formats.index import (
    Example,
    Finding,
    Index,
    LayoutOptions,
    check_options,
    chosen_domains,
    join,
    read_text,
)
from trainers.data.formats.readers import FileSource
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, listed, shortened

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
_LISTED_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class _List:
    """One official list."""

    name: str  # of the file
    domain: str
    split: Literal["train", "test"]
    labels: Sequence[tuple[str, int]]  # path and label of each line
    sha256: str


@cache
def domainnet_classes() -> tuple[str, ...]:
    """DomainNet's 345 class folders in the order of the labels in its official lists."""
    file = files("trainers.data.formats").joinpath("domainnet_classes.yaml")
    return tuple(yaml.safe_load(file.read_text(encoding="utf-8")))


def read_domainnet(source: Store, options: LayoutOptions) -> list[Index]:
    """Index the official train and test splits of each domain.

    Class names are folder names in the order of the labels, over all lists that are there, so that
    they do not depend on which domains are asked for.

    Raises:
        ConfigError: no lists, an unknown domain, a line of another form, labels and folders that do
            not match, labels without a class, or a `--deduplicate` file about other data.
    """
    check_options(options, "domainnet", "domains", "deduplicate")
    lists = _read_lists(source)
    domains = chosen_domains(source, sorted({entry.domain for entry in lists}), options.domains)
    class_names = _class_names(source, lists)
    left_out: set[str] = set()
    metadata, unknown = {"layout": "domainnet"}, []
    if options.deduplicate is not None:
        folder, slash, name = options.deduplicate.rpartition("/")
        text, sha256 = read_text(open_store(folder or slash or "."), name)
        paths = [line.strip().removeprefix("./") for line in text.split("\n") if line.strip()]
        known = {path for entry in lists for path, _ in entry.labels}
        strange = [path for path in paths if path not in known]
        if len(strange) == len(paths):
            raise ConfigError(
                f"no list has any of its {len(paths)} paths, such as {listed(paths, most=1)}",
                key="--deduplicate",
                value=options.deduplicate,
                hint="they look like 'real/tiger/real_320_000001.jpg'",
            )
        if strange:
            detail = f"no list has {len(strange)} of the {len(paths)} paths, e.g. {strange[0]}"
            unknown = [Finding(name, "unknown duplicates", detail)]
        left_out, metadata = set(paths), metadata | {"deduplicate_sha256": sha256}
    indexes: list[Index] = []
    for domain in domains:
        of_domain = [entry for entry in lists if entry.domain == domain]
        indexes += _domain(source, of_domain, class_names, left_out, metadata)
    indexes[0] = replace(indexes[0], findings=(*unknown, *indexes[0].findings))
    return indexes


def _read_lists(source: Store) -> list[_List]:
    """All official lists, in the order of `DOMAINS`."""
    wanted = {
        f"{domain}_{split}.txt": (domain, split) for domain in DOMAINS for split in _LISTED_SPLITS
    }
    for folder in ("", "splits"):
        there = {info.base_name for info in source.list(folder)}
        if there & wanted.keys():
            break
    else:
        raise ConfigError(
            "no official list of DomainNet such as real_train.txt, here or in splits/",
            hint=f"there is {listed(info.base_name for info in source.list())}",
            source=source.url,
        )
    lists = []
    for name, (domain, split) in wanted.items():
        if name not in there:
            continue
        text, sha256 = read_text(source, join(folder, name))
        labels = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            path, _, label = (part.strip() for part in line.strip().rpartition(" "))
            parts = path.split("/")
            is_path = len(parts) == 3 and parts[0] == domain and not {"", ".", ".."} & set(parts)
            is_label = label.isascii() and label.isdecimal() and len(label) < 10
            if not is_path or not is_label:
                raise ConfigError(
                    f"line {number}: {shortened(line.strip())!r} is not a path and a label such as "
                    f"'{domain}/tiger/{domain}_320_000001.jpg 320'",
                    source=join(source.url, folder, name),
                )
            labels.append((path, int(label)))
        if not labels:
            raise ConfigError("the list is empty", source=join(source.url, folder, name))
        lists.append(_List(name, domain, split, labels, sha256))
    return lists


def _class_names(source: Store, lists: Sequence[_List]) -> tuple[str, ...]:
    """Folder names by label; a folder may be spelled in another case elsewhere."""
    folders: dict[int, str] = {}
    labels: dict[str, int] = {}
    for entry in lists:
        for path, label in entry.labels:
            folder = path.split("/")[1]
            first = folders.setdefault(label, folder)
            if first.casefold() != folder.casefold() or (
                labels.setdefault(folder.casefold(), label) != label
            ):
                raise ConfigError(
                    f"{path!r} has the label {label}, but other lines have folder {first!r} with "
                    f"label {label} or folder {folder!r} with another label",
                    source=f"{source.url}: {entry.name}",
                )
    for label in range(max(folders)):
        if label not in folders:
            problem = f"no list has an image of label {label}, so its class has no name"
            raise ConfigError(problem, source=source.url)
    return tuple(folders[label] for label in range(len(folders)))


def _domain(
    source: Store,
    lists: Sequence[_List],
    class_names: tuple[str, ...],
    left_out: Collection[str],
    metadata: dict[str, str],
) -> Iterator[Index]:
    """Index the lists of one domain; an image that is in both of them stays in test alone."""
    domain = lists[0].domain
    # One listing instead of a request for each image.
    files = set(source.files(domain))
    if not files:
        problem = f"there is a list of {domain}, but its folder {domain}/ is missing or empty"
        raise ConfigError(problem, source=source.url)
    in_test = {path for entry in lists if entry.split == "test" for path, _ in entry.labels}
    known = {path for entry in lists for path, _ in entry.labels}
    metadata = metadata | {
        "lists_sha256": " ".join(f"{entry.name}:{entry.sha256}" for entry in lists),
        "deduplicated": str(len(known & set(left_out))),
    }
    missing_lists = [
        Finding(f"{domain}_{split}.txt", "missing list", f"{domain} has no {split} split")
        for split in _LISTED_SPLITS
        if split not in {entry.split for entry in lists}
    ]
    for entry in lists:
        examples, findings, seen = [], list(missing_lists), set()
        for path, label in entry.labels:
            if path in seen:
                detail = f"listed again in {entry.name}; taken once"
                findings.append(Finding(path, "duplicate", detail))
            elif path in left_out:
                findings.append(Finding(path, "deduplicated", "left out as --deduplicate says"))
            elif entry.split == "train" and path in in_test:
                findings.append(Finding(path, "in train and test", "left out of train"))
            elif path not in files:
                findings.append(Finding(path, "missing file", f"{entry.name} lists it", bad=True))
            else:
                examples.append(Example(FileSource(path), path, label))
            seen.add(path)
        present = {example.label for example in examples}
        findings += [
            Finding(f"{domain}/{name}", "missing class", f"{entry.name} has no image of it")
            for label, name in enumerate(class_names)
            if label not in present
        ]
        yield Index(domain, entry.split, class_names, tuple(examples), tuple(findings), metadata)
