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
from trainers.data.formats.imagenet import DATA_SETS, read_data_set
from trainers.data.formats.index import Index, LayoutOptions
from trainers.data.formats.parquet import read_parquet
from trainers.data.formats.webdataset import read_webdataset
from trainers.data.storage import Store


@dataclass(frozen=True)
class Layout:
    """One way in which images lie on disks."""

    description: str
    """One line: the folders and files of the layout."""
    read: Callable[[Store, LayoutOptions], list[Index]]
    """Indexes a source without opening an image."""
    test_fraction: float = 0.0
    """Share of a train split that becomes test by default, if there is no test split."""


LAYOUTS = {
    "domainnet": Layout("DomainNet: <domain>_{train,test}.txt beside the domains", read_domainnet),
    **{
        name: Layout(data_set.description, partial(read_data_set, name))
        for name, data_set in DATA_SETS.items()
    },
    "arrays": Layout("NumPy: {train,val,test}_{images,labels}.npy, as Lipsum-FT's", read_arrays),
    "webdataset": Layout("WebDataset: [{train,val,test}/]*.tar, classnames.txt", read_webdataset),
    "folders": Layout(
        "class folders: [<domain>/][{train,val,test}/]<class>/*", read_folders, test_fraction=0.2
    ),
    "parquet": Layout("Hugging Face's Parquet, or this project's: **/*.parquet", read_parquet),
}
"""By the name that users type."""
