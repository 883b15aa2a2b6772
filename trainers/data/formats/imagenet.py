"""ImageNet and its shifts V2, -R, -A and -Sketch: a folder a class, as their archives unpack.

Folders are named by WordNet id (`n01440764`), those of V2 by the index of the class among the ids
in their order. A source may be the data set's own folder or the one that its archive was unpacked
in. All shifts are test sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from trainers.data.formats.class_folders import (
    contents,
    contents_of,
    folders_in,
    images_of_classes,
)
from trainers.data.formats.index import (
    Finding,
    LayoutOptions,
    Split,
    SplitListing,
    beside,
    join,
    only,
)
from trainers.data.storage import Store
from trainers.errors import ConfigError

_WORDNET_ID = re.compile(r"n\d{8}")

_IMAGENET_ARCHIVES = ("", "ILSVRC/Data/CLS-LOC")
"""Kaggle's archive has its folders deep down."""

_OFFICIAL: Final[dict[str, Split]] = {"train": "train", "val": "test"}
"""Folders and the splits they are: what ImageNet calls validation is what papers report."""

_V2_ARCHIVES = (
    "imagenetv2-matched-frequency-format-val",
    "imagenetv2-threshold0.7-format-val",
    "imagenetv2-top-images-format-val",
)


def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1000 classes in the order of their labels, which is sorted."""
    return _synsets("imagenet")


def subset_ids(shift: Literal["r", "a"]) -> tuple[str, ...]:
    """The 200 ids of ImageNet-R or -A, in the order that they have among the 1000."""
    return _synsets(f"imagenet_{shift}")


@cache
def _synsets(name: str) -> tuple[str, ...]:
    spec = find_spec("timm")  # importing timm takes seconds, and its lists are plain files
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "data" / "_info" / f"{name}_synsets.txt"
    return tuple(file.read_text(encoding="utf-8").split())


def imagenet(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """ImageNet: `train/<id>/*`, and the official validation set, `val/<id>/*`, as split test.

    With fewer than 1000 class folders in `train`, those are the classes: a user's subset.

    Raises:
        ConfigError: neither folder is there, one has images but no class folders, or a folder is
            not named by an id of ImageNet.
    """
    only(options, "imagenet", "domain")
    base = next(
        (b for b in _IMAGENET_ARCHIVES if {"train", "val"} & set(folders_in(source, b))), None
    )
    if base is None:
        raise ConfigError(
            f"{source.url}: ImageNet's folders train and val are looked for, one of them at least; "
            f"there is {beside(folders_in(source))}"
        )
    folders = {
        name: _classes_of_imagenet(source, join(base, name))
        for name in ("train", "val")
        if name in folders_in(source, base)
    }
    class_names = next(iter(folders.values()))  # those of train where there is one
    labels = {name: label for label, name in enumerate(class_names)}
    listings = []
    for name, split in _OFFICIAL.items():
        if name in folders:
            examples, findings = images_of_classes(source, base, name, labels)
            unknown = [folder for folder in folders[name] if folder not in labels]
            findings += _left_out(source, base, name, unknown)
            domain = options.domain or "imagenet"
            listings.append(
                SplitListing(domain, split, class_names, examples, findings, {"layout": "imagenet"})
            )
    return listings


def _left_out(source: Store, base: str, path: str, folders: Sequence[str]) -> tuple[Finding, ...]:
    """Each class that train lacks, and how much is lost: train may be unpacked half-way only."""
    if not folders:
        return ()
    found = contents_of(source, [join(base, path, folder) for folder in folders])
    lost = sum(len(there.images) for there in found)
    detail = f"{lost} images of {len(folders)} classes that train lacks left out"
    return (
        Finding(path, "images left out", detail),
        *(Finding(join(path, folder), "class not in train", "left out") for folder in folders),
    )


def imagenet_v2(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """ImageNet-V2, any of its three variants; its folders are class indices without zeros in front.

    Raises:
        ConfigError: a folder that is no index of the 1000 classes, or several variants to choose
            from.
    """
    only(options, "imagenet-v2", "domain")
    there = folders_in(source)
    variants = [name for name in _V2_ARCHIVES if name in there]
    if len(variants) > 1:
        raise ConfigError(
            f"{source.url}: several variants of ImageNet-V2 are there ({', '.join(variants)}); the "
            "source is one of them"
        )
    base = variants[0] if variants else ""
    folders = folders_in(source, base) if base else there
    if not folders:
        raise ConfigError(
            f"{source.url}: ImageNet-V2's folders 0 to 999 are looked for, there or in a folder "
            f"such as {_V2_ARCHIVES[0]}; there is nothing of the kind"
        )
    labels = _class_indices(source, base, folders)
    missing = {str(i): i for i in set(range(len(wordnet_ids()))) - set(labels.values())}
    examples, findings = images_of_classes(source, base, "", labels | missing)
    variant = base or source.root.rpartition("/")[2]
    metadata = {"layout": "imagenet-v2"} | ({"variant": variant} if variant in _V2_ARCHIVES else {})
    domain = options.domain or "imagenet-v2"
    return [SplitListing(domain, "test", wordnet_ids(), examples, findings, metadata)]


def _class_indices(source: Store, base: str, folders: Sequence[str]) -> dict[str, int]:
    """The folders of V2 as numbers: sorted as words, `10` would come before `2`."""
    where = join(source.url, base)
    indices: dict[int, str] = {}
    for folder in folders:
        index = int(folder) if folder.isascii() and folder.isdecimal() else -1
        if not 0 <= index < len(wordnet_ids()):
            raise ConfigError(
                f"{where}: folder {folder!r} is no index of a class of ImageNet-V2, which go from "
                f"0 to {len(wordnet_ids()) - 1}"
            )
        if index in indices:
            raise ConfigError(f"{where}: folders {indices[index]!r} and {folder!r} are one class")
        indices[index] = folder
    return {folder: index for index, folder in indices.items()}


def imagenet_r(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """ImageNet-R: 200 classes, labelled in the order of their WordNet ids."""
    return _by_wordnet_id(source, options, "imagenet-r", "imagenet-r", subset_ids("r"))


def imagenet_a(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """ImageNet-A: 200 classes, labelled in the order of their WordNet ids."""
    return _by_wordnet_id(source, options, "imagenet-a", "imagenet-a", subset_ids("a"))


def imagenet_sketch(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """ImageNet-Sketch: the 1000 classes of ImageNet."""
    return _by_wordnet_id(source, options, "imagenet-sketch", "sketch", wordnet_ids())


def _by_wordnet_id(
    source: Store,
    options: LayoutOptions,
    layout: str,
    archive: str,
    class_names: tuple[str, ...],
) -> list[SplitListing]:
    """A test set of known classes, in the source or in its archive's folder there.

    Raises:
        ConfigError: no class folders, or one that is not among the classes.
    """
    only(options, layout, "domain")
    there = folders_in(source)
    base = "" if any(_WORDNET_ID.fullmatch(name) for name in there) else archive
    folders = there if not base else folders_in(source, base) if base in there else []
    if not folders:
        raise ConfigError(
            f"{source.url}: class folders named by WordNet id such as {class_names[0]} are looked "
            f"for, there or in {archive}/; there is {beside(there)}"
        )
    for folder in folders:
        if folder not in class_names:
            raise ConfigError(
                f"{join(source.url, base)}: folder {folder!r} is not among the "
                f"{len(class_names)} classes of {layout}"
            )
    labels = {name: label for label, name in enumerate(class_names)}
    examples, findings = images_of_classes(source, base, "", labels)
    domain = options.domain or layout
    return [SplitListing(domain, "test", class_names, examples, findings, {"layout": layout})]


def _classes_of_imagenet(source: Store, path: str) -> tuple[str, ...]:
    folders = folders_in(source, path)
    if not folders:
        images = len(contents(source, path).images)
        what = f"{images} images without class folders" if images else "no class folders"
        raise ConfigError(
            f"{join(source.url, path)}: {what}; sort them into a folder for each WordNet id, "
            "as the usual valprep.sh does for the validation set"
        )
    known = frozenset(wordnet_ids())
    for folder in folders:
        if folder not in known:
            raise ConfigError(
                f"{join(source.url, path)}: folder {folder!r} is no WordNet id of ImageNet's 1000 "
                f"classes, such as {min(known)} (for classes of your own, use the layout folders)"
            )
    return tuple(folders)
