"""NumPy arrays of images and labels, as the official release of Lipsum-FT evaluates on them.

A folder holds `test_images.npy` of shape (N, H, W, 3) uint8 and `test_labels.npy` of shape (N,),
or the same with `train` or `val`. The release's own folders, such as `DomainNetReal_x224`, are
known by name: their domains, and their classes in the order of their labels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import yaml

from trainers.data.formats.class_folders import folders_in
from trainers.data.formats.class_names import read_class_names_file
from trainers.data.formats.imagenet import subset_ids, wordnet_ids
from trainers.data.formats.index import (
    Example,
    LayoutOptions,
    Split,
    SplitListing,
    beside,
    only,
)
from trainers.data.formats.naming import SPLITS, chosen_domains, domain_of
from trainers.data.formats.npy import NpyHeader, read_npy_header, require_images
from trainers.data.formats.readers import ArraySource
from trainers.data.storage import Store
from trainers.errors import ConfigError, first_line

DOMAINS = {
    "DomainNetReal": "real",
    "DomainNetPainting": "painting",
    "DomainNetClipart": "clipart",
    "DomainNetInfograph": "infograph",
    "DomainNetSketch": "sketch",
    "DomainNetQuickdraw": "quickdraw",
    "ImageNet": "imagenet",
    "ImageNetV2": "imagenet-v2",
    "ImageNetR": "imagenet-r",
    "ImageNetA": "imagenet-a",
    "ImageNetSketch": "imagenet-sketch",
}
"""The release's folders, without what follows an underscore, and the domains they hold."""

_METADATA = {"layout": "arrays", "crop_pct": "1.0"}  # they have been cropped before they were saved


def arrays(source: Store, options: LayoutOptions) -> list[SplitListing]:
    """List a folder of arrays, or a folder of such folders, each of which is a domain.

    Labels of ImageNet-R and -A index these sets' own 200 classes, as the release has them.

    Raises:
        ConfigError: no arrays, arrays of another kind, as many labels as images not, or classes
            of which nobody says the names.
    """
    only(options, "arrays", "domain", "domains", "class_names")
    given = read_class_names_file(options.class_names) if options.class_names else None
    folders = _folders(source, options)
    return [
        listing
        for folder, domain in folders.items()
        for listing in _list_folder(source, folder, domain, given)
    ]


def _folders(source: Store, options: LayoutOptions) -> dict[str, str]:
    """Folders with arrays, relative to the source, and the domains that they are."""
    if _splits(source, ""):
        known = DOMAINS.get(_family(source.root.rpartition("/")[2]))
        domain = options.domain or known or domain_of(source, options)
        chosen_domains(source, [domain], options.domains)
        return {"": domain}
    there = folders_in(source)
    found = {name: DOMAINS.get(_family(name), name) for name in there if _splits(source, name)}
    if not found:
        raise ConfigError(
            f"{source.url}: neither test_images.npy (or train_, val_) nor folders with it; "
            f"there is {beside(there or [source.relative(info) for info in source.list()])}"
        )
    if options.domain and len(found) > 1:
        raise ConfigError(
            f"{source.url}: --domain = {options.domain!r} names one domain, and the folders "
            f"{beside(list(found))} are {len(found)}; give the folder of one, or --domains"
        )
    if options.domain:
        found = dict.fromkeys(found, options.domain)
    chosen = chosen_domains(source, found.values(), options.domains)
    folders = {name: domain for name, domain in found.items() if domain in chosen}
    _refuse_domains_twice(source, folders)
    return folders


def _refuse_domains_twice(source: Store, folders: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for folder, domain in folders.items():
        other = seen.setdefault(domain, folder)
        if other != folder:
            raise ConfigError(f"{source.url}: {other} and {folder} are both the domain {domain!r}")


def _family(folder: str) -> str:
    return folder.partition("_")[0]


def _splits(source: Store, folder: str) -> list[Split]:
    return [split for split in SPLITS if source.exists(_within(folder, f"{split}_images.npy"))]


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _list_folder(
    source: Store, folder: str, domain: str, given: Sequence[str] | None
) -> list[SplitListing]:
    name = folder or source.root.rpartition("/")[2]
    class_names = given or _known_class_names(_family(name))
    if class_names is None:
        raise ConfigError(
            f"{source.url}: --class-names is missing: {name!r} is no folder of the official "
            "release, so nothing says what its labels mean"
        )
    return [
        SplitListing(
            domain, split, tuple(class_names), _examples(source, folder, split), (), _METADATA
        )
        for split in _splits(source, folder)
    ]


def _known_class_names(family: str) -> tuple[str, ...] | None:
    if family not in DOMAINS:
        return None
    if family.startswith("DomainNet"):
        return domainnet_classes()
    if family == "ImageNetR":
        return subset_ids("r")
    if family == "ImageNetA":
        return subset_ids("a")
    return wordnet_ids()


@cache
def domainnet_classes() -> tuple[str, ...]:
    """DomainNet's 345 class folders in the order of the labels in its official lists."""
    file = files("trainers.data.formats").joinpath("domainnet_classes.yaml")
    return tuple(yaml.safe_load(file.read_text(encoding="utf-8")))


def _examples(source: Store, folder: str, split: Split) -> tuple[Example, ...]:
    images = _within(folder, f"{split}_images.npy")
    labels = _within(folder, f"{split}_labels.npy")
    if not source.exists(labels):
        raise ConfigError(f"{source.url}: {images} is there, but {labels} is missing")
    count = _image_header(source, images).shape[0]
    values = _labels(source, labels)
    if len(values) != count:
        raise ConfigError(
            f"{source.url}: {images} holds {count} images and {labels} {len(values)} labels"
        )
    return tuple(
        Example(ArraySource(images, index), f"{images}#{index}", label)
        for index, label in enumerate(values)
    )


def _image_header(source: Store, path: str) -> NpyHeader:
    try:
        with source.open(path) as file:
            header = read_npy_header(file)
        require_images(header)
        _require_whole(header, source.info(path).size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source.url}: {path}: {first_line(error)}") from None
    return header


def _labels(source: Store, path: str) -> list[int]:
    try:
        data = source.read_bytes(path)
        header = read_npy_header(io.BytesIO(data))
        if len(header.shape) != 1 or not np.issubdtype(header.dtype, np.integer):
            raise ValueError(
                f"shape {header.shape}, {header.dtype} is not the expected (N,), integers"
            )
        _require_whole(header, len(data))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source.url}: {path}: {first_line(error)}") from None
    return [int(label) for label in np.frombuffer(data, header.dtype, offset=header.offset)]


def _require_whole(header: NpyHeader, size: int) -> None:
    if size != header.file_bytes:
        raise ValueError(f"it has {size} bytes, and by its header {header.file_bytes}")
