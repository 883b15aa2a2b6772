"""Images in folders of classes: `[<split>/]<class>/*`, listed but not read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image

from trainers.data.images import FORMATS
from trainers.errors import ConfigError, listed, quoted

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
"""Usual names of splits, in lower case."""

SKIPPED = (".", "@eaDir", "__MACOSX", "lost+found", "Thumbs.db", "desktop.ini")
"""Beginnings of the names of hidden files, thumbnails, resource forks and a disk's own folder."""


@dataclass
class Found:
    """The images of one domain and split, not read yet."""

    rows: datasets.Dataset
    """Columns `image` (bytes, or the path of a file), `label` (a ClassLabel) and `name`."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of what was seen and not taken."""
    within: tuple[str, ...] = ()
    """Folders that hold all files whose paths stand in a table, which somebody else wrote. Empty if
    the paths were listed here."""

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
    columns = {"image": images, "label": list(labels), "name": list(names)}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def files_below(root: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, without hidden ones.

    A link to a folder above itself counts as a file: below it, all images would be found again, as
    images of other classes.
    """

    def refuse(error: OSError) -> None:
        raise error  # else its images would be missing without a word

    found: list[str] = []
    for path, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        loops = [name for name in folders if _leads_above(Path(path, name))]
        folders[:] = [n for n in folders if n not in loops and not n.startswith(SKIPPED)]
        prefix = f"{path}/"[len(f"{root}/") :]
        found += [f"{prefix}{name}" for name in names + loops if not name.startswith(SKIPPED)]
    return found


def _leads_above(folder: Path) -> bool:
    """Whether a folder is a link to one of those that contain it."""
    target = folder.resolve() if folder.is_symlink() else None
    return target is not None and any(
        parent.resolve().is_relative_to(target) for parent in folder.absolute().parents
    )


@cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions().items()
    return frozenset(extension for extension, kind in known if kind in FORMATS)


def is_image(path: str) -> bool:
    """Whether a file is an image by its name."""
    return Path(path).suffix.lower() in _extensions()


def in_classes(
    root: Path,
    paths: Iterable[str],
    labels: Mapping[str, int],
    class_names: Sequence[str],
    folder: str = "",
) -> Found:
    """The images of the class folders in `folder`, such as `train/`, by label and path.

    Other files in it are left out. `paths` are relative to `root`; `labels` are of its folders.
    """
    rows = list[tuple[int, str]]()
    left_out = list[tuple[str, str]]()
    for path in (path for path in paths if path.startswith(folder)):
        class_, is_in_folder, _ = path.removeprefix(folder).partition("/")
        if not is_in_folder:
            left_out.append((path, "not in a class folder"))
        elif class_ not in labels:
            left_out.append((path, f"{class_} is not one of the classes"))
        elif not is_image(path):
            left_out.append((path, "not an image by its name"))
        elif any("\udc80" <= letter <= "\udcff" for letter in path):
            left_out.append((path, "its name is not UTF-8"))
        else:
            rows.append((labels[class_], path))
    rows.sort()
    names = [path for _, path in rows]
    found = image_rows(root, names, [label for label, _ in rows], class_names)
    return Found(found, sorted(left_out))


def read_folders(root: Path, class_names: Sequence[str] | None = None) -> dict[Split, Found]:
    """Class folders of one's own, in split folders or without.

    Refused is what would train on wrong labels without an error: folders of domains, splits beside
    classes, and folders that the ID domain does not train on.

    Classes are those of the ID domain, if `class_names` has them, or the sorted folders of train.
    """
    paths = files_below(root)
    images = [path for path in paths if is_image(path)]
    top = {path.split("/")[0] for path in images if "/" in path}
    named = sorted(name for name in top if name.lower() in SPLIT_WORDS)
    folders: dict[Split, str] = {"train": ""}
    if named and len(named) == len(top):
        folders = {SPLIT_WORDS[name.lower()]: f"{name}/" for name in named}
        if len(folders) < len(named):
            raise ConfigError(f"two of the folders {listed(named)} are one split", source=root)
    elif {*named} - {path.split("/")[0] for path in images if path.count("/") == 1}:
        # A class may be called `train`, but then it has images.
        problem = f"{listed(named)} are folders of splits, and there are images in "
        raise ConfigError(f"{problem}{listed(sorted(top - {*named}))} beside them", source=root)
    classes: dict[Split, set[str]] = {}
    for split, folder in folders.items():
        below = [path.removeprefix(folder).split("/") for path in images if path.startswith(folder)]
        classes[split] = {parts[0] for parts in below if len(parts) > 1}
        if not any(len(parts) == 2 for parts in below):
            problem = f"no image lies in a folder of a class; there is {listed(sorted(top))}"
            hint = f"images belong in {root}/{folder}<class>/; --id names one of several domains"
            raise ConfigError(problem, hint=hint, source=root)
    # Python reads bytes that are not UTF-8 as surrogates, which cannot be written.
    every = set.union(*classes.values())
    if bad := sorted(name for name in every if any("\ud800" <= c <= "\udfff" for c in name)):
        raise ConfigError(f"names of folders are not UTF-8: {quoted(bad)}", source=root)
    names = class_names or sorted(classes.get("train") or every)
    for split, there in classes.items():
        if more := sorted(there - {*names}):
            problem = f"the folders {listed(more)} are no classes of the split train"
            hint = "sort their images by class, or remove them"
            raise ConfigError(problem, hint=hint, source=f"{root}/{folders[split]}")
    labels = {name: label for label, name in enumerate(names)}
    return {s: in_classes(root, paths, labels, names, folders[s]) for s in SPLITS if s in folders}
