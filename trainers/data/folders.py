"""Images in folders of classes: `[<split>/]<class>/*`, listed but not read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image

from trainers.errors import ConfigError, listed

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
"""Usual names of splits, in lower case."""

_SKIPPED = (".", "@eaDir", "__MACOSX")  # hidden files, thumbnails, resource forks
_TEXTS = ("readme", "license", "thumbs.db", "desktop.ini")  # first words, in lower case


@dataclass
class Found:
    """The images of one domain and split, not read yet."""

    rows: datasets.Dataset
    """Columns `image` (bytes, or the path of a file), `label` (a ClassLabel) and `name`."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of what was seen and not taken."""
    metadata: dict[str, str] = field(default_factory=dict)
    """For the Parquet files; `class_map` and `crop_pct` change how they are read."""
    border: int = 0
    """Pixels to cut off every side first (ObjectNet's images have a red frame)."""

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return list(self.rows.features["label"].names)


def image_rows(
    root: Path, names: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
) -> datasets.Dataset:
    """Files below a folder as rows, with their paths in place of their bytes."""
    import datasets

    features = {
        "image": datasets.Image(decode=False),
        "label": datasets.ClassLabel(names=list(class_names)),
        "name": datasets.Value("string"),
    }
    images = [{"bytes": None, "path": f"{root}/{name}"} for name in names]
    try:
        columns = {"image": images, "label": list(labels), "name": list(names)}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    except UnicodeEncodeError as error:
        problem = f"the name {os.fsencode(str(error.object))!r} is not UTF-8; rename it"
        raise ConfigError(problem, source=root) from None


def subfolders(root: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted, without hidden ones."""
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(_SKIPPED))


def read_class_folders(
    root: Path, folder: str, labels: Mapping[str, int], names: Sequence[str]
) -> Found:
    """The images of the class folders in `root/folder`, each with the label of its class folder.

    Images outside of the class folders and files that are no images are left out.
    """
    paths: list[str] = []
    of_path: list[int] = []
    beside, texts = _files(root / folder)
    beside += [name for name in texts if not name.lower().endswith((".txt", ".csv", ".json"))]
    left_out = [(_join(folder, name), "not in a class folder") for name in beside]
    for name, label in sorted(labels.items(), key=lambda item: (item[1], item[0])):
        images, others = _files(root / folder / name, recursive=True)
        paths += [_join(folder, name, image) for image in images]
        of_path += [label] * len(images)
        left_out += [(_join(folder, name, other), "not an image by its name") for other in others]
        if not images:
            left_out.append((_join(folder, name), "an empty class folder"))
    return Found(image_rows(root, paths, of_path, names), left_out)


def read_folders(root: Path) -> dict[Split, Found]:
    """Class folders of one's own, in split folders or without; their classes are in sorted order.

    Raises:
        ConfigError: no class folders with images; or folders that look like domains, which would
            train without an error on the wrong labels.
    """
    splits = _split_folders(root) or {"train": ""}
    found: dict[Split, Found] = {}
    for split in (split for split in SPLITS if split in splits):
        folder, where = splits[split], root / splits[split]
        there = subfolders(where)
        classes = [name for name in there if _files(where / name, recursive=True)[0]]
        if not classes:
            stray = len(_files(where)[0])
            problem = f"no class folders with images; found {stray:,} images outside of them"
            hint = f"images belong in {where}/<class>/; there is {listed(there)}"
            raise ConfigError(problem, hint=hint, source=where)
        below = [{*subfolders(where / name)} for name in classes]
        common = set.intersection(*below) if len(below) > 1 else set()
        if len(common) > 1 and not any(_files(where / name)[0] for name in classes):
            raise ConfigError(
                f"the folders {listed(classes)} look like domains, since each of them holds the "
                f"folders {listed(sorted(common))}",
                hint="--id DOMAIN names the one to fine-tune on",
                source=where,
            )
        labels = {name: label for label, name in enumerate(classes)}
        found[split] = read_class_folders(root, folder, labels, classes)
        empty = [name for name in there if name not in labels]
        found[split].left_out += [(_join(folder, n), "an empty class folder") for n in empty]
    return found


def _split_folders(root: Path) -> dict[Split, str]:
    """Split folders in a folder; none if its folders are classes, of which one may be `train`."""
    found: dict[Split, str] = {}
    names = subfolders(root)
    for name in names:
        split = SPLIT_WORDS.get(name.lower())
        if split in found:
            problem = f"{found[split]} and {name} are both the split {split!r}"
            raise ConfigError(problem, source=root)
        if split is not None:
            found[split] = name
    others = [n for n in names if n not in found.values() and _files(root / n, recursive=True)[0]]
    if not found or not others:
        return found
    if any(subfolders(root / name) and not _files(root / name)[0] for name in found.values()):
        problem = f"{listed(found.values())} are folders of splits, and there are images in "
        raise ConfigError(f"{problem}{listed(others)} beside them", source=root)
    return {}


@cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions().items()
    return frozenset(ext for ext, kind in known if Image.MIME.get(kind, "").startswith("image/"))


def _files(folder: Path, recursive: bool = False) -> tuple[list[str], list[str]]:
    """Images by their names, and other files and linked folders; sorted, without hidden ones."""
    images: list[str] = []
    others: list[str] = []
    for path, folders, names in os.walk(folder):
        below = os.path.relpath(path, folder)
        others += [_join(below, n) for n in folders if recursive and Path(path, n).is_symlink()]
        folders[:] = [n for n in folders if recursive and not n.startswith(_SKIPPED)]
        for name in names:
            if Path(name).suffix.lower() in _extensions() and not name.startswith(_SKIPPED):
                images.append(_join(below, name))
            elif not name.startswith(_SKIPPED) and not name.lower().startswith(_TEXTS):
                others.append(_join(below, name))
    return sorted(images), sorted(others)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part not in ("", "."))
