"""Published data sets as they lie on a disk: ImageNet and its shifts, and DomainNet.

Labels are indices into WordNet ids, or the classes of DomainNet's lists.
What ImageNet calls validation is the set that papers report, so it becomes the split test.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from trainers.data.folders import Found, Split, files_below, image_rows, in_classes
from trainers.errors import ConfigError, listed
from trainers.yaml_text import read_text

_LIST = re.compile(r"(\w+)_(train|test)\.txt")

IMAGENET = ("imagenet", "imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch")
"""Layouts of ImageNet and its shifts."""


@cache
def wordnet_ids(ids: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids in the order of the labels: ImageNet's 1000, or the 200 of ImageNet-R or -A."""
    spec = find_spec("timm")  # importing timm takes seconds, and its lists are plain files
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "data" / "_info" / f"{ids}_synsets.txt"
    return tuple(file.read_text(encoding="utf-8").split())


def read_imagenet(layout: str, root: Path) -> dict[Split, Found]:
    """The splits of one of `IMAGENET`, whose class folders other folders beside them may join.

    A part of ImageNet is prepared with the classes of its train folder.
    """
    paths = files_below(root)
    folders: dict[Split, str] = {"test": ""}
    is_subset = layout in ("imagenet-r", "imagenet-a")
    ids = wordnet_ids(layout.replace("-", "_") if is_subset else "imagenet")
    if layout == "imagenet":
        folders = {"train": "train/", "test": "val/"}
        train = {path.split("/")[1] for path in paths if path.startswith("train/")}
        ids = tuple(name for name in ids if name in train) or ids
    is_numbered = layout == "imagenet-v2"
    labels = {str(label) if is_numbered else name: label for label, name in enumerate(ids)}
    found = dict[Split, Found]()
    left_out = list[tuple[str, str]]()
    for split, folder in folders.items():
        of_split = in_classes(root, paths, labels, ids, folder)
        if len(of_split.rows):
            found[split] = of_split
        else:
            left_out += of_split.left_out
    if not found:
        problem = f"not {layout}: no image in a folder such as {min(folders.values())}{min(labels)}"
        hint = f"there is {listed(sorted({path.split('/')[0] for path in paths}))}"
        raise ConfigError(problem, hint=hint, source=root)
    next(iter(found.values())).left_out += left_out
    return found


def domainnet_domains(root: Path) -> list[str]:
    """Domains of which there is an official list."""
    return sorted({domain for domain, _ in _lists(root)})


def read_domainnet(root: Path, domain: str) -> dict[Split, Found]:
    """The official lists `<domain>_{train,test}.txt`, beside the domains or in `splits/`.

    The lists alone say which images there are; classes are those of all lists, so that they do not
    depend on which domains are prepared. An image of both lists stays in test.
    """
    lists = _lists(root)
    known = {(label, path.split("/")[1]) for lines in lists.values() for path, label in lines}
    class_names = [name for _, name in sorted(known)]
    if [label for label, _ in sorted(known)] != list(range(len({*class_names}))):
        raise ConfigError("labels and folders of its lists do not match", source=root)
    in_test = {path for path, _ in lists.get((domain, "test"), ())}
    found: dict[Split, Found] = {}
    both: tuple[Split, ...] = ("train", "test")
    for split in both:
        lines = dict(lists.get((domain, split), ()))
        twice = sorted(in_test & lines.keys()) if split == "train" else []
        taken = {path: label for path, label in lines.items() if path not in {*twice}}
        if taken:
            rows = image_rows(root, list(taken), list(taken.values()), class_names)
            reason = "listed in train and test; left out of train"
            found[split] = Found(rows, [(path, reason) for path in twice])
    return found


@cache
def _lists(root: Path) -> dict[tuple[str, Split], list[tuple[str, int]]]:
    """Paths and labels of all official lists, by domain and split."""
    found: dict[tuple[str, Split], list[tuple[str, int]]] = {}
    for file in sorted([*root.glob("*.txt"), *(root / "splits").glob("*.txt")]):
        if not (named := _LIST.fullmatch(file.name)):
            continue
        domain, split = named[1], cast(Split, named[2])
        line_of = re.compile(rf"({domain}/[^/]+/[^/]+) (\d{{1,9}})")
        lines = read_text(file, "utf-8-sig", source=file).strip().splitlines()
        for number, line in enumerate(lines, 1):
            if not (parts := line_of.fullmatch(line.strip())):
                problem = f"line {number} is not `{domain}/<class>/<file> <label>`: {line[:99]!r}"
                raise ConfigError(problem, source=file)
            found.setdefault((domain, split), []).append((parts[1], int(parts[2])))
    if not found:
        raise ConfigError("no official list of DomainNet, such as real_train.txt", source=root)
    return found
