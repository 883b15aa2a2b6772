"""Labelled images of one domain and split. Batches of them: `trainers.data.loaders`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import fs
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from trainers.data.images import BadImage, decode, is_too_large, orientation
from trainers.data.roots import domain_files
from trainers.data.schema import Header, split_header
from trainers.data.store import CACHE_VARIABLE, Store, cache_folder, open_store
from trainers.errors import ConfigError, StorageFailed, first_line, storage_failures
from trainers.folders import appearing, waiting_lock
from trainers.seeding import generator

if TYPE_CHECKING:
    import datasets


class ImageDataset:
    """The images of `<root>/<domain>/<split>/*.parquet`, in the order of file and row.

    The package `datasets` keeps them as Arrow files in the cache of this machine, which is filled
    first if needed. These are memory-mapped: an image is read when it is used, and processes share
    the pages. Pickled copies in other processes map the same files.
    """

    def __init__(
        self, store: Store | Path | str, domain: str, split: str, *, crop_pct: float = 1.0
    ) -> None:
        self.store = open_store(store)
        self.name = f"{domain}/{split}"
        files = domain_files(self.store, domain, split)
        self.version = _version(self.store, self.name, files)
        """Changes if the data are written again."""
        header, self._rows = _opened(self.store, tuple(files), self.version)
        self.class_names = header.class_names
        self.labels: np.ndarray = self._rows.data.column("label").to_numpy()
        """(N,) int64, indices into the class names."""
        self.eval_rows: Sequence[int] = range(len(self.labels))
        """Rows of the images that an evaluation sees, ascending."""
        self.crop_pct = crop_pct
        """Share of the resized image's short side that evaluation sees."""

    def __len__(self) -> int:
        return len(self.labels)

    def sampled(self, size: int) -> ImageDataset:
        """The same images, of which evaluations see a stratified sample: always the same one.

        Args:
            size: of the sample; 0, or as many images as there are, is all of them.
        """
        if not 0 < size < len(self):
            return self
        sample = copy(self)
        sample.eval_rows = stratified(self.labels, size, generator(0, "evaluation sample"))
        return sample

    @property
    def whole(self) -> ImageDataset:
        """The images of which this may be a sample."""
        whole = copy(self)
        whole.eval_rows = range(len(self))
        return whole

    def decode(self, index: int) -> Image.Image:
        """One image, RGB and upright, as `prepare` would store it."""
        image = self._images[index].as_py()
        try:
            return decode(image["bytes"] or b"")
        except BadImage as bad:
            problem = f"row {index} ({image['path']}): {bad}"
            hint = "`lipsum-tune prepare parquet` leaves out such images"
            source = f"{self.store.url}/{self.name}"
            raise ConfigError(problem, hint=hint, source=source) from None

    def path(self, index: int) -> str:
        """Name of an image, for people."""
        return str(self._images[index]["path"].as_py())

    def pixels(self, index: int) -> Tensor:
        """The same image as (3, H, W) uint8, decoded faster if it is a usual JPEG."""
        data = self._images[index]["bytes"].as_buffer()
        if data is not None and _is_usual_jpeg(data):
            with suppress(RuntimeError):  # a torchvision without libjpeg
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return decode_jpeg(encoded, mode=ImageReadMode.RGB)
        return functional.pil_to_tensor(self.decode(index))

    @cached_property
    def _images(self) -> pa.ChunkedArray:
        """Its lookups take 3 us. `self._rows[index]` takes 70 us, and the table 250 us to make a
        column of the 15,000 chunks of ImageNet."""
        return self._rows.data.column("image")

    def __getstate__(self) -> dict[str, Any]:
        """Without the column, which would be pickled with all images."""
        return {name: value for name, value in vars(self).items() if name != "_images"}


def _version(store: Store, folder: str, files: Sequence[str]) -> str:
    """A name for files of a folder that changes if one of them is written again."""
    facts = []
    with storage_failures(store.url, "its files cannot be listed"):
        there = store.list(folder)  # one request to a bucket
    for file in there:
        if store.relative(file) not in files:
            continue
        changed = file.mtime_ns
        if changed is None and isinstance(store.filesystem, fs.PyFileSystem):
            changed = store.filesystem.handler.fs.checksum(file.path)  # an ETag or the like
        facts.append([file.path, file.size, changed])
    account = "" if store.is_local else store.url
    return hashlib.sha256(json.dumps([account, *facts]).encode()).hexdigest()[:32]


@lru_cache(maxsize=64)  # the trials of a process open the same splits
def _opened(store: Store, files: tuple[str, ...], version: str) -> tuple[Header, datasets.Dataset]:
    """Header of the Parquet files of a split, and their rows in the Arrow cache of `datasets`."""
    import datasets  # with pandas and httpx, more than what a command line needs
    from datasets.data_files import DataFilesDict, DataFilesList

    header = split_header(store, files)
    folder = cache_folder()
    features = {"image": datasets.Image(decode=False), "label": datasets.Value("int64")}
    try:
        if store.is_local:
            paths = [str(store.local_path(file)) for file in files]
        else:
            copies = folder / "downloads" / version
            _copy(store, files[0].rpartition("/")[0], copies)
            paths = [str(copies / Path(file).name) for file in files]
        datasets.disable_progress_bars()
        return header, datasets.Dataset.from_parquet(
            # Not as patterns, in which brackets of a path would have a meaning.
            DataFilesDict({"train": DataFilesList(paths, [(version,)])}),
            split="train",
            cache_dir=str(folder),
            features=datasets.Features(features),
            columns=list(features),
        )
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError) as error:
        reason = first_line(error.__cause__ or error)
        hint = f"${CACHE_VARIABLE} names another folder for the cache of images, {folder}"
        raise ConfigError(f"cannot be cached: {reason}", hint=hint, source=store.url) from None


def _copy(store: Store, folder: str, copies: Path) -> None:
    """Copy a folder of a bucket to this machine, once for all processes."""
    copies.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(Path(f"{copies}.lock"), f"copying images from {store.url}"):
        if copies.exists():
            return
        with appearing(copies) as made:
            try:
                here = fs.LocalFileSystem()
                fs.copy_files(store.full(folder), str(made), store.filesystem, here)
            except OSError as error:
                if error.errno is not None:  # of this machine
                    raise
                reason = f"its files cannot be copied: {first_line(error)}"
                raise StorageFailed(f"{store.url}: {reason}") from None


def stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> list[int]:
    """Rows of a random sample in which every class has its share, ascending.

    The share is rounded at random: the images of a class get random places in (0, 1) at equal
    distances, and the sample is the images with the smallest places.
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    of_class = labels[by_class]
    number_in_class = np.arange(len(labels)) - (counts.cumsum() - counts)[of_class]
    places = (number_in_class + rng.random(len(counts))[of_class]) / counts[of_class]
    return np.sort(by_class[np.argsort(places, kind="stable")[:size]]).tolist()


def _is_usual_jpeg(data: pa.Buffer) -> bool:
    """Whether `decode` and torchvision decode a file to the same bits.

    They do not if the end is missing, which torchvision fills up with grey, or if the image has to
    be rotated.
    """
    if bytes(data[:2]) != b"\xff\xd8" or bytes(data[-2:]) != b"\xff\xd9":
        return False
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
    except Exception:  # `decode` reports it
        return False
    is_plain = image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1
    return is_plain and not is_too_large(image)
