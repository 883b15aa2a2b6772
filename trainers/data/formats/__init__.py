"""Layouts of image data on disks, by the name that users type.

There are three readers: class folders and lists, tars, and Parquet; arrays of one release are a
fourth. A published data set of class folders is one row of the table `DATA_SETS` in `imagenet.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from trainers.data.formats.arrays import read_arrays
from trainers.data.formats.domainnet import read_domainnet
from trainers.data.formats.folders import read_folders
from trainers.data.formats.imagenet import DATA_SETS, read_class_folders
from trainers.data.formats.index import Index, LayoutOptions
from trainers.data.formats.parquet import read_parquet
from trainers.data.formats.webdataset import read_webdataset
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """One way in which images lie on disks."""

    name: str
    description: str
    """One line: the folders and files of the layout."""
    read: Callable[[Store, LayoutOptions], list[Index]]
    """Indexes a source without opening an image."""


_READERS: dict[str, Callable[[Store, LayoutOptions], list[Index]]] = {
    **{name: partial(read_class_folders, name) for name in DATA_SETS},
    "domainnet": read_domainnet,
    "arrays": read_arrays,
    "webdataset": read_webdataset,
    "folders": read_folders,
    "parquet": read_parquet,
}
_DESCRIPTIONS = {
    "domainnet": "DomainNet: <domain>_{train,test}.txt beside the domains",
    "imagenet": "ImageNet: {train,val}/<WordNet id>/*.JPEG",
    "imagenet-v2": "ImageNet-V2: folders 0 to 999",
    "imagenet-r": "ImageNet-R: folders of 200 WordNet ids",
    "imagenet-a": "ImageNet-A: folders of 200 WordNet ids",
    "imagenet-sketch": "ImageNet-Sketch: folders of WordNet ids",
    "objectnet": "ObjectNet: images/<class>/*.png and mappings/*.json",
    "arrays": "NumPy: {train,val,test}_{images,labels}.npy, as Lipsum-FT's",
    "webdataset": "WebDataset: [{train,val,test}/]*.tar, classnames.txt",
    "folders": "class folders: [<domain>/][{train,val,test}/]<class>/*",
    "parquet": "Hugging Face's Parquet, or this project's: **/*.parquet",
}

LAYOUTS = {
    name: Layout(name, description, _READERS[name]) for name, description in _DESCRIPTIONS.items()
}


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"no such layout{did_you_mean(name, LAYOUTS)}", key="layout", value=name)
    return LAYOUTS[name]
