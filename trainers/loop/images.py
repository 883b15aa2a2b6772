"""The images of a trial by split. Only validation images can be chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, overload

from trainers.config import TrialConfig
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset
from trainers.data.roots import domain_files
from trainers.data.schema import read_header
from trainers.data.store import open_root


class Images(dict[str, ImageDataset]):
    """The images of a split by domain, the ID domain first."""

    def __init__(self, split: str, by_domain: Mapping[str, ImageDataset]) -> None:
        super().__init__(by_domain)
        self.split = split


class ValidationImages(Images):
    """The images of the validation splits, which alone decide anything: see `choose`."""

    def __init__(self, by_domain: Mapping[str, ImageDataset]) -> None:
        super().__init__("val", by_domain)

    def sampled(self, size: int) -> ValidationImages:
        """A sample of each domain, see `ImageDataset.sampled`."""
        return ValidationImages({name: images.sampled(size) for name, images in self.items()})


@overload
def load_split(config: TrialConfig, split: Literal["val"]) -> ValidationImages: ...
@overload
def load_split(config: TrialConfig, split: str) -> Images: ...
def load_split(config: TrialConfig, split: str) -> Images:
    """The images of all domains of the configuration."""
    data = config.data
    by_domain = {domain: open_images(data, domain, split) for domain in data.domains}
    return ValidationImages(by_domain) if split == "val" else Images(split, by_domain)


def open_images(data: DataConfig, domain: str, split: str) -> ImageDataset:
    """The images of one domain and split."""
    return ImageDataset(open_root(data.root), domain, split, crop_pct=data.crop_pct)


def id_classes(data: DataConfig, split: str = "train") -> tuple[str, ...]:
    """The classes of the head, read from the footer of a Parquet file."""
    store = open_root(data.root)
    return read_header(store, domain_files(store, data.id_domain, split)[0]).class_names
