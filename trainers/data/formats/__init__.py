"""The layouts in which images lie on disks: one module each, from a source to listings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainers.data.formats import (
    arrays,
    domainnet,
    folders,
    imagenet,
    objectnet,
    parquet,
    webdataset,
)
from trainers.data.formats.index import LayoutOptions, SplitListing
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """One way in which images lie on disks."""

    name: str
    """As users type it."""
    description: str
    """One line: which folders and files make it."""
    listing: Callable[[Store, LayoutOptions], list[SplitListing]]
    """Finds the examples of a source; opens no image."""


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "domainnet",
            "DomainNet: <domain>_{train,test}.txt beside the domains",
            domainnet.domainnet,
        ),
        Layout("imagenet", "ImageNet: {train,val}/<WordNet id>/*.JPEG", imagenet.imagenet),
        Layout("imagenet-v2", "ImageNet-V2: folders 0 to 999", imagenet.imagenet_v2),
        Layout("imagenet-r", "ImageNet-R: folders of 200 WordNet ids", imagenet.imagenet_r),
        Layout("imagenet-a", "ImageNet-A: folders of 200 WordNet ids", imagenet.imagenet_a),
        Layout(
            "imagenet-sketch", "ImageNet-Sketch: folders of WordNet ids", imagenet.imagenet_sketch
        ),
        Layout(
            "objectnet", "ObjectNet: images/<class>/*.png and mappings/*.json", objectnet.objectnet
        ),
        Layout(
            "arrays", "NumPy: {train,val,test}_{images,labels}.npy, as Lipsum-FT's", arrays.arrays
        ),
        Layout(
            "webdataset",
            "WebDataset: [{train,val,test}/]*.tar, classnames.txt",
            webdataset.webdataset,
        ),
        Layout(
            "folders", "class folders: [<domain>/][{train,val,test}/]<class>/*", folders.folders
        ),
        Layout(
            "parquet", "Hugging Face's Parquet, or this project's: **/*.parquet", parquet.parquet
        ),
    )
}
"""By the names that users type."""


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: there is none; the message says which there are.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"layout = {name!r} is not known{did_you_mean(name, LAYOUTS)}")
    return LAYOUTS[name]
