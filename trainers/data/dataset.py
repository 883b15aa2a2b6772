"""Labelled images of one domain and split, and batches of them to train on and evaluate."""

from __future__ import annotations

import io
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import fs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from trainers.data.cache.arrow_cache import cached_shards, map_shard
from trainers.data.data_root import domain_files
from trainers.data.encoding import BadImage, decode, orientation
from trainers.data.sampler import StepSampler
from trainers.data.schema import check_range, class_names_of, metadata_of
from trainers.data.storage import Store, open_store
from trainers.data.transforms import CROP_AREA, CROP_PCT, eval_view, train_view
from trainers.errors import ConfigError
from trainers.models import ImageInput
from trainers.seeding import generator

KEEP_BYTES = 1 << 29
"""Evaluation views of up to this size (512 MiB) stay decoded, for each domain in each process."""


class ImageDataset:
    """The images of `<root>/<domain>/<split>/*.parquet`, in the order of file and row.

    They are mapped from this machine's cache of Arrow files, which is filled first where it has to
    be: an image is read when it is asked for, and processes share what was read. Copies in other
    processes open the same files.

    Args:
        store: the data set's root; a path will do.
        domain: its folder.
        split: `train`, `val` or `test`.
        cache_gb: limit of this machine's cache.
        crop_pct: in place of the data's own.

    Raises:
        ConfigError: no such folder, no Parquet file in it, an unfinished preparation, a label
            without a class, files that differ in their class names, or a cache that is too small.
    """

    def __init__(
        self,
        store: Store | Path | str,
        domain: str,
        split: str,
        *,
        cache_gb: float = 100.0,
        crop_pct: float | None = None,
    ) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.name = f"{domain}/{split}"
        self.files = domain_files(self.store, domain, split)
        self._limit = int(cache_gb * 1e9)
        self._shards: list[Path] = []
        tables = self._map()
        self.class_names, self.metadata = self._agreed(tables)
        self.crop_pct = crop_pct if crop_pct is not None else self._own_crop_pct()
        """Share of the resized image's short side that evaluation sees."""
        self._eval_views: tuple[Any, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("labels", "_images", "_paths", "_ends", "_eval_views")
        state = {key: value for key, value in vars(self).items() if key not in mapped}
        state["files"] = [(file.path, file.mtime_ns, file.size) for file in self.files]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.files = [
            fs.FileInfo(path, fs.FileType.File, mtime_ns=mtime_ns, size=size)
            for path, mtime_ns, size in state["files"]
        ]
        self._eval_views = None
        self._map()

    def decode(self, index: int) -> Image.Image:
        """One image, RGB and upright, as `prepare` would store it.

        Raises:
            ConfigError: it cannot be decoded; names the image and what to do about it.
        """
        chunk, row = self._find(index)
        try:
            return decode(self._images[chunk][row].as_py() or b"")
        except BadImage as bad:
            raise ConfigError(
                f"{self.store.url}/{self.name}: row {index} ({self._paths[chunk][row].as_py()}): "
                f"{bad}; `lipsum-tune prepare parquet` finds and leaves out such images"
            ) from None

    def pixels(self, index: int) -> Tensor:
        """The same image as (3, H, W) uint8, in less time where it is a usual JPEG."""
        chunk, row = self._find(index)
        data = self._images[chunk][row].as_buffer()
        if data is not None and _is_usual_jpeg(data):
            with suppress(RuntimeError):  # a torchvision without libjpeg
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return decode_jpeg(encoded, mode=ImageReadMode.RGB)
        return functional.pil_to_tensor(self.decode(index))

    def _find(self, index: int) -> tuple[int, int]:
        """The batch that an image is in, and its row there."""
        chunk = bisect_right(self._ends, index)
        return chunk, index - (self._ends[chunk - 1] if chunk else 0)

    def eval_batches(
        self,
        image_input: ImageInput,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One worker's share as ((B, 3, size, size) uint8, (B,) int64), each image once.

        Views of small sets are kept; those of larger ones are decoded again at each evaluation.

        Args:
            image_input: of the model.
            batch_size: B; the last batch may be smaller.
            rank: of the training worker that asks.
            world_size: number of training workers.
            workers: processes that decode; 0 decodes in this one.
        """
        mine = range(rank, len(self), world_size)
        if len(mine) * 3 * image_input.size**2 > KEEP_BYTES:
            yield from self._decoded(image_input, mine, batch_size, workers)
            return
        key = (image_input, mine)
        if self._eval_views is None or self._eval_views[0] != key:
            batches = self._decoded(image_input, mine, batch_size, workers)
            views = [views for views, _ in batches] or [torch.empty(0, dtype=torch.uint8)]
            self._eval_views = key, torch.cat(views)
        labels = torch.from_numpy(self.labels[mine.start :: mine.step])
        kept = self._eval_views[1].split(batch_size)
        yield from zip(kept, labels.split(batch_size), strict=True)

    def _decoded(
        self, image_input: ImageInput, indices: range, batch_size: int, workers: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return _batches(
            DataLoader(
                _EvalViews(self, image_input), batch_size, sampler=indices, num_workers=workers
            )
        )

    def _map(self) -> list[pa.Table]:
        tables = self._tables()
        self.labels: np.ndarray = np.concatenate([table["label"].to_numpy() for table in tables])
        """(N,) int64, indices into the class names."""
        self._images = [chunk for table in tables for chunk in table["bytes"].chunks]
        self._paths = [chunk for table in tables for chunk in table["path"].chunks]
        self._ends = list(accumulate(len(chunk) for chunk in self._images))
        return tables

    def _tables(self) -> list[pa.Table]:
        for _ in range(3):
            try:
                if not self._shards:
                    self._shards = cached_shards(self.store, self.files, limit_bytes=self._limit)
                return [map_shard(path) for path in self._shards]
            except FileNotFoundError:  # another data set needed the room, or some are torn
                for path in self._shards:  # all that are torn go now
                    with suppress(FileNotFoundError):
                        map_shard(path)
                self._shards = []
        raise ConfigError(
            f"data.cache_gb = {self._limit / 1e9:g}: the cache is being emptied by others while "
            f"{self.store.url}/{self.name} is read from it: raise data.cache_gb"
        )

    def _agreed(self, tables: list[pa.Table]) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Class names and metadata of all files, once they and the labels are known to be sound."""
        first = metadata_of(tables[0].schema)
        names = class_names_of(tables[0].schema, self.name)
        for file, table in zip(self.files, tables, strict=True):
            where = f"{self.store.url}/{self.store.relative(file)}"
            if class_names_of(table.schema, where) != names:
                raise ConfigError(f"{where}: other class names than {self.files[0].base_name}")
            metadata = metadata_of(table.schema)
            for key in ("crop_pct", "class_map"):
                if metadata.get(key) != first.get(key):
                    raise ConfigError(f"{where}: another {key} than {self.files[0].base_name}")
            check_range(table["label"], len(names), where)
        if not self._ends or not self._ends[-1]:
            raise ConfigError(f"{self.store.url}/{self.name}: no images in its files")
        return names, first

    def _own_crop_pct(self) -> float:
        text = self.metadata.get("crop_pct", str(CROP_PCT))
        try:
            crop_pct = float(text)
        except ValueError:
            crop_pct = 0.0
        if not 0 < crop_pct <= 1:
            raise ConfigError(f"{self.store.url}/{self.name}: metadata crop_pct = {text!r}")
        return crop_pct


def _is_usual_jpeg(data: pa.Buffer) -> bool:
    """Whether it is one on which `decode` and torchvision agree to the bit.

    Not so where the end is missing, which torchvision would fill up with grey, nor where it lies on
    its side.
    """
    if bytes(data[:2]) != b"\xff\xd8" or bytes(data[-2:]) != b"\xff\xd9":
        return False
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
    except Exception:  # `decode` says what it is
        return False
    return image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1


class _EvalViews(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, images: ImageDataset, image_input: ImageInput) -> None:
        self.images, self.image_input = images, image_input

    def __getitem__(self, sample: int) -> tuple[Tensor, Tensor]:
        image = self.images.decode(sample)
        view = eval_view(image, self.image_input, self.images.crop_pct)
        return view, torch.as_tensor(self.images.labels[sample])


class _TrainViews(Dataset[tuple[Tensor, Tensor]]):
    """Views by (step, sample), each a function of (seed, step, sample)."""

    def __init__(
        self, images: ImageDataset, image_input: ImageInput, seed: int, area: tuple[float, float]
    ) -> None:
        self.images, self.image_input, self.seed, self.area = images, image_input, seed, area

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        step, sample = key
        rng = generator(self.seed, "view", step, sample)
        view = train_view(self.images.pixels(sample), self.image_input, rng, self.area)
        return view, torch.as_tensor(self.images.labels[sample])


def train_batches(
    images: ImageDataset,
    sampler: StepSampler,
    *,
    image_input: ImageInput,
    crop_area: tuple[float, float] = CROP_AREA,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of `sampler` as ((B, 3, size, size) uint8, (B,) int64).

    Args:
        images: of the ID domain's train split.
        sampler: which samples make which step.
        image_input: of the model.
        crop_area: least and greatest share of an image that a view shows.
        workers: processes that decode; 0 decodes in this one.
        pin_memory: page-locked batches, for copies to a GPU that overlap with its work.
    """
    return _batches(
        DataLoader(
            _TrainViews(images, image_input, sampler.seed, crop_area),
            batch_sampler=sampler,
            num_workers=workers,
            pin_memory=pin_memory,
        )
    )


def eval_samples(
    images: ImageDataset,
    samples: Iterable[list[int]],
    image_input: ImageInput,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen images as evaluation sees them: ((B, 3, size, size) uint8, (B,) int64) a batch."""
    return _batches(
        DataLoader(_EvalViews(images, image_input), batch_sampler=samples, num_workers=workers)
    )


def _batches(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass; a mistake that a loader process met is told without that process's traceback."""
    try:
        yield from loader
        return
    except ConfigError as error:
        last = str(error).strip().splitlines()[-1]
        error.__traceback__ = None  # it holds the loader, whose processes would end late
    raise ConfigError(last.removeprefix("trainers.errors.ConfigError: "))
