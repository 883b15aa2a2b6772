"""Published data sets as they lie on a disk: ImageNet and its shifts, DomainNet, and WILDS.

Labels are indices into WordNet ids, the classes of DomainNet's lists, or WILDS' own categories.
What ImageNet calls validation is the set that papers report, so it becomes the split test.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import yaml

from trainers.data.folders import Found, Split, files_below, image_rows, in_classes
from trainers.errors import ConfigError, first_line, listed
from trainers.yaml_text import read_text

_LIST = re.compile(r"(\w+)_(train|test)\.txt")

IMAGENET = (
    "imagenet", "imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet",
)  # fmt: skip
"""Layouts of ImageNet and its shifts."""


@cache
def wordnet_ids(ids: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids in the order of the labels: ImageNet's 1000, or the 200 of ImageNet-R or -A."""
    spec = find_spec("timm")  # importing timm takes seconds, and its lists are plain files
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "data" / "_info" / f"{ids}_synsets.txt"
    return tuple(file.read_text(encoding="utf-8").split())


@cache
def objectnet_class_map() -> dict[str, list[str]]:
    """WordNet ids of ObjectNet's class folders that stand for ImageNet classes."""
    text = (files("trainers.data") / "objectnet.yaml").read_text(encoding="utf-8")
    found: dict[str, list[str]] = yaml.safe_load(text)
    return found


def read_imagenet(layout: str, root: Path) -> dict[Split, Found]:
    """The splits of one of `IMAGENET`, whose class folders other folders beside them may join.

    A part of ImageNet is prepared with the classes of its train folder.

    Raises:
        ConfigError: no images in class folders.
    """
    paths, border, metadata = files_below(root), 0, dict[str, str]()
    folders: dict[Split, str] = {"test": ""}
    is_subset = layout in ("imagenet-r", "imagenet-a")
    ids = wordnet_ids(layout.replace("-", "_") if is_subset else "imagenet")
    if layout == "imagenet":
        folders = {"train": "train/", "test": "val/"}
        train = {path.split("/")[1] for path in paths if path.startswith("train/")}
        ids = tuple(name for name in ids if name in train) or ids
    if layout == "objectnet":
        folders, border = {"test": "images/"}, 2
        ids = tuple(sorted(objectnet_class_map()))
        metadata["class_map"] = json.dumps(objectnet_class_map(), sort_keys=True)
    is_numbered = layout == "imagenet-v2"
    labels = {str(label) if is_numbered else name: label for label, name in enumerate(ids)}
    found, left_out = dict[Split, Found](), list[tuple[str, str]]()
    for split, folder in folders.items():
        of_split = in_classes(root, paths, labels, ids, folder)
        of_split.metadata, of_split.border = metadata, border
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

    Raises:
        ConfigError: no lists, or labels and folders of classes that do not match.
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


def read_wilds(layout: str, root: Path, domain: str) -> dict[Split, Found]:
    """IWildCam 2.0 or FMoW 1.1 as the package `wilds` leaves them, in its official splits.

    The domain `<layout>` has WILDS' splits train, id_val and id_test, and `<layout>-ood` has val
    and test: other cameras, or later years.

    Raises:
        ConfigError: a file or a column is missing.
    """
    import pandas as pd

    try:
        if layout == "iwildcam":
            table = pd.read_csv(root / "metadata.csv")
            categories = pd.read_csv(root / "categories.csv").sort_values("y", kind="stable")
            class_names: list[str] = []
            for y, name in zip(categories["y"], categories["name"], strict=True):
                if y == len(class_names):  # categories that no image has are at 99999
                    class_names.append(f"{name} ({y})" if name in class_names else str(name))
            names = [f"train/{Path(str(name)).name}" for name in table["filename"]]
            labels = table["y"]
            part = table["split"]
        else:
            table = pd.read_csv(root / "rgb_metadata.csv")
            class_names = sorted({*table["category"]})
            names = [f"images/rgb_img_{number}.png" for number in range(len(table))]
            labels = table["category"].map(class_names.index)
            year = pd.to_datetime(table["timestamp"], format="ISO8601", utc=True).dt.year
            part = table["split"].where(table["split"] == "train", "id_" + table["split"])
            part = part.mask(year >= 2013, None)
            part = part.mask((year >= 2013) & (year < 2016) & (table["split"] == "val"), "val")
            part = part.mask((year >= 2016) & (table["split"] == "test"), "test")
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"not WILDS' {layout}: {first_line(error)}", source=root) from None
    theirs: dict[Split, str] = {"train": "train", "val": "id_val", "test": "id_test"}
    if domain.endswith("-ood"):
        theirs = {"val": "val", "test": "test"}
    found: dict[Split, Found] = {}
    for split, name in theirs.items():
        if rows := [row for row, value in enumerate(part) if value == name]:
            images = [names[row] for row in rows]
            of_rows = [int(labels.iloc[row]) for row in rows]
            found[split] = Found(image_rows(root, images, of_rows, class_names))
    return found
