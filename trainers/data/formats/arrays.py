"""NumPy arrays of images and labels, as the official release of Lipsum-FT evaluates on them.

A folder holds `test_images.npy` of shape (N, H, W, 3) uint8 and `test_labels.npy` of shape (N,),
or the same with `train` or `val`. The release's own folders, such as `DomainNetReal_x224`, are
recognised by their names, which give the domain and the classes in the order of their labels.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np

from trainers.data.formats.domainnet import DOMAINS, domainnet_classes
from trainers.data.formats.image_files import folders_in
from trainers.data.formats.imagenet import wordnet_ids
from trainers.data.formats.index import (
    SPLITS,
    Example,
    Index,
    LayoutOptions,
    check_options,
    chosen_domains,
    domain_name,
    join,
    read_class_names_file,
)
from trainers.data.formats.readers import ArraySource, check_image_array, read_npy_header
from trainers.data.storage import Store
from trainers.errors import ConfigError, first_line, listed

RELEASE: dict[str, tuple[str, Callable[[], tuple[str, ...]]]] = {
    **{f"DomainNet{domain.title()}": (domain, domainnet_classes) for domain in DOMAINS},
    "ImageNet": ("imagenet", wordnet_ids),
    "ImageNetV2": ("imagenet-v2", wordnet_ids),
    "ImageNetR": ("imagenet-r", lambda: wordnet_ids("imagenet_r")),
    "ImageNetA": ("imagenet-a", lambda: wordnet_ids("imagenet_a")),
    "ImageNetSketch": ("imagenet-sketch", wordnet_ids),
}
"""The release's folders, without what follows an underscore: domain and class names."""


def read_arrays(source: Store, options: LayoutOptions) -> list[Index]:
    """Index a folder of arrays, or a folder of such folders, each of which is a domain.

    Raises:
        ConfigError: no arrays, arrays of another kind, a different number of labels than of images,
            or unknown class names.
    """
    check_options(options, "arrays", "domain", "domains", "class_names")
    given = read_class_names_file(options.class_names) if options.class_names else None

    def splits_in(folder: str) -> list[str]:
        return [s for s in SPLITS if source.exists(join(folder, f"{s}_images.npy"))]

    there = folders_in(source)
    folders = [""] if splits_in("") else [name for name in there if splits_in(name)]
    if not folders:
        problem = f"neither test_images.npy (or train_, val_) nor folders with it: {listed(there)}"
        raise ConfigError(problem, source=source.url)
    if options.domain and len(folders) > 1:
        problem = f"names one domain, but there are the folders {listed(folders)}"
        raise ConfigError(problem, key="--domain", value=options.domain, source=source.url)
    domains = {}
    for folder in folders:
        family = (folder or source.root.rpartition("/")[2]).partition("_")[0]
        released = RELEASE.get(family)
        known = released[0] if released else folder
        domain = options.domain or known or domain_name(source, options)
        if domain in domains:
            raise ConfigError(f"two folders are the domain {domain!r}", source=source.url)
        domains[domain] = folder, given or (released[1]() if released else None)
    indexes = []
    for domain in chosen_domains(source, domains, options.domains):
        folder, class_names = domains[domain]
        if class_names is None:
            problem = "is needed: the folder is not one of the official release"
            raise ConfigError(problem, key="--class-names", source=join(source.url, folder))
        for split in SPLITS:
            if split in splits_in(folder):
                images = join(folder, f"{split}_images.npy")
                examples = tuple(
                    Example(ArraySource(images, row), f"{images}#{row}", label)
                    for row, label in enumerate(_labels(source, folder, split))
                )
                # Images were cropped before they were saved.
                metadata = {"layout": "arrays", "crop_pct": "1.0"}
                indexes.append(Index(domain, split, class_names, examples, (), metadata))
    return indexes


def _labels(source: Store, folder: str, split: str) -> list[int]:
    """Labels of a split, after a check of both files against their headers."""
    path = join(folder, f"{split}_images.npy")
    try:
        with source.open(path) as file:
            shape, dtype, start = read_npy_header(file)
            check_image_array(shape, dtype)
            if file.size() != start + int(np.prod(shape, dtype=np.int64)):
                raise ValueError("the size of the file differs from its header")
        path = join(folder, f"{split}_labels.npy")
        data = source.read_bytes(path)
        label_shape, label_dtype, start = read_npy_header(BytesIO(data))
        if not np.issubdtype(label_dtype, np.integer):
            raise ValueError(f"{label_dtype}, and labels are integers")
        labels = np.frombuffer(data, label_dtype, offset=start)
        if labels.shape != label_shape or label_shape != shape[:1]:
            raise ValueError(f"{labels.shape}, {label_shape} by its header, for {shape[0]} images")
    except (OSError, ValueError) as error:
        raise ConfigError(first_line(error), source=join(source.url, path)) from None
    return [int(label) for label in labels]
