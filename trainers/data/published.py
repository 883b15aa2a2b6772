"""Published data sets as they lie on a disk: ImageNet and its shifts, DomainNet, and WILDS.

Labels are indices into WordNet ids, the classes of DomainNet's lists, or WILDS' own categories.
What ImageNet calls validation is the set that papers report, so it becomes the split test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import yaml

from trainers.data.folders import Found, Split, image_rows, read_class_folders, subfolders
from trainers.errors import ConfigError, listed

_LIST = re.compile(r"(\w+)_(train|test)\.txt")


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """How one data set of class folders lies on a disk."""

    archives: tuple[str, ...]
    """Folders that its archive unpacks into."""
    splits: Mapping[str, Split] = field(default_factory=lambda: {"": "test"})
    """Folder to split; "" if the class folders lie at the top."""
    ids: str = "imagenet"
    """List of WordNet ids, whose order is that of the labels."""
    border: int = 0
    """Pixels to cut off every side."""


CLASS_FOLDERS = {
    "imagenet": ClassFolders(
        archives=("ILSVRC/Data/CLS-LOC",), splits={"train": "train", "val": "test"}
    ),
    "imagenet-v2": ClassFolders(
        archives=(
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2-threshold0.7-format-val",
            "imagenetv2-top-images-format-val",
        )
    ),
    "imagenet-r": ClassFolders(archives=("imagenet-r",), ids="imagenet_r"),
    "imagenet-a": ClassFolders(archives=("imagenet-a",), ids="imagenet_a"),
    "imagenet-sketch": ClassFolders(archives=("sketch",)),
    "objectnet": ClassFolders(archives=("objectnet-1.0",), splits={"images": "test"}, border=2),
}
"""By the name of the layout."""


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
    """The splits of one of `CLASS_FOLDERS`, in its own folder or that of its unpacked archive.

    A part of ImageNet is prepared with the classes of its train folder; folders of other classes
    are left out, as are ObjectNet's without a class of ImageNet.

    Raises:
        ConfigError: its folders are not there, or one of them is not named as a class of it.
    """
    about, metadata = CLASS_FOLDERS[layout], {}
    ids = wordnet_ids(about.ids)
    if layout == "objectnet":
        ids = tuple(sorted(objectnet_class_map()))
        metadata["class_map"] = json.dumps(objectnet_class_map(), sort_keys=True)

    def identity(folder: str) -> str:
        is_number = layout == "imagenet-v2" and folder.isdecimal() and int(folder) < len(ids)
        return ids[int(folder)] if is_number else folder

    known = {name for name in about.splits if name} or {*ids}
    bases = [
        base
        for base in ("", *about.archives)
        if known & {identity(name) for name in subfolders(root / base)}
    ]
    if len(bases) > 1 and bases[0]:
        raise ConfigError(f"several variants: {listed(bases)}; give one", source=root)
    if not bases:
        problem = (
            f"not {layout}: no folder such as {min(known)}, here or in {listed(about.archives)}"
        )
        hint = f"there is {listed(subfolders(root))}"
        raise ConfigError(problem, hint=hint, source=root)
    root, found, class_names = root / bases[0], dict[Split, Found](), ids
    for folder, split in about.splits.items():
        there = {name: identity(name) for name in subfolders(root / folder)}
        if folder and not there:
            continue
        if layout == "imagenet" and not found:
            class_names = tuple(name for name in ids if name in there)
        wrong = [name for name, class_ in there.items() if class_ not in ids]
        if wrong and layout != "objectnet":
            problem = f"the folder {wrong[0]!r} is not one of the classes of {layout}"
            hint = "for classes of your own, use the layout folders"
            raise ConfigError(problem, hint=hint, source=root / folder)
        labels = {n: class_names.index(c) for n, c in there.items() if c in class_names}
        if len({*labels.values()}) < len(labels):
            raise ConfigError("two folders are the same class", source=root / folder)
        found[split] = read_class_folders(root, folder, labels, class_names)
        if not len(found[split].rows):
            raise ConfigError("no image in any of its class folders", source=root / folder)
        rest = [f"{folder}/{name}".lstrip("/") for name in there if name not in labels]
        found[split].left_out += [(name, "a class that the head does not have") for name in rest]
        found[split].metadata, found[split].border = metadata, about.border
    return found


def domainnet_domains(root: Path) -> list[str]:
    """Domains of which there is an official list."""
    return sorted({domain for domain, _ in _lists(root)})


def read_domainnet(root: Path, domain: str) -> dict[Split, Found]:
    """The official lists `<domain>_{train,test}.txt`, beside the domains or in `splits/`.

    The lists alone say which images there are; classes are those of all lists, so that they do not
    depend on which domains are prepared. An image of both lists stays in test.

    Raises:
        ConfigError: no list of the domain, a line that is not `<domain>/<class>/<file> <label>`, or
            labels and folders that do not match.
    """
    lists, names = _lists(root), dict[int, str]()
    for (of_domain, split), lines in lists.items():
        for path, label in lines:
            folder = path.split("/")[1]
            if names.setdefault(label, folder) != folder:
                problem = f"label {label} is both {names[label]!r} and {folder!r}"
                raise ConfigError(problem, source=f"{root}/{of_domain}_{split}.txt")
    class_names = [names.get(label, "") for label in range(max(names, default=-1) + 1)]
    if "" in class_names or len({*class_names}) < len(class_names):
        problem = "its lists have labels without an image, or several labels of one folder"
        raise ConfigError(problem, source=root)
    if not any(of_domain == domain for of_domain, _ in lists):
        raise ConfigError(f"no list {domain}_train.txt or {domain}_test.txt", source=root)
    in_test = {path for path, _ in lists.get((domain, "test"), ())}
    found: dict[Split, Found] = {}
    both: tuple[Split, ...] = ("train", "test")
    for split in both:
        taken: dict[str, int] = {}
        left_out = []
        for path, label in lists.get((domain, split), ()):
            if path in taken:
                left_out.append((path, f"listed twice in {split}"))
            elif split == "train" and path in in_test:
                left_out.append((path, "listed in train and test; left out of train"))
            else:
                taken[path] = label
        if taken:
            rows = image_rows(root, list(taken), list(taken.values()), class_names)
            found[split] = Found(rows, left_out)
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
        for number, line in enumerate(file.read_text(encoding="utf-8").strip().splitlines(), 1):
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
            names, labels = [f"train/{name}" for name in table["filename"]], table["y"]
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
        raise ConfigError(f"not WILDS' {layout}: {error}", source=root) from None
    found: dict[Split, Found] = {}
    theirs: dict[Split, str] = {"train": "train", "val": "id_val", "test": "id_test"}
    if domain.endswith("-ood"):
        theirs = {"val": "val", "test": "test"}
    for split, name in theirs.items():
        rows = [row for row, value in enumerate(part) if value == name]
        if rows:
            images = [names[row] for row in rows]
            of_rows = [int(labels.iloc[row]) for row in rows]
            found[split] = Found(image_rows(root, images, of_rows, class_names))
    return found
