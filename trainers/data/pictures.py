"""Labelled pictures of one domain and split, read from the project's Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainers.data.sampler import StepSampler
from trainers.data.schema import read_class_names
from trainers.data.views import CROP_AREA, eval_view, train_view
from trainers.errors import ConfigError, did_you_mean
from trainers.seeding import generator

KEEP_BYTES = 1 << 29
"""Evaluation views of up to this size stay decoded in memory (512 MiB)."""


class Pictures:
    """The pictures of `<root>/<domain>/<split>/*.parquet`, in the order of file and row.

    Raises:
        ConfigError: no such folder, no Parquet file in it, or files that name classes differently.
    """

    def __init__(self, root: Path, domain: str, split: str) -> None:
        self.name = f"{domain}/{split}"
        files = parquet_files(root, domain, split)
        names = {tuple(read_class_names(file)) for file in files}
        if len(names) != 1:
            raise ConfigError(f"{root / domain / split}: its files differ in their class names")
        self.class_names = names.pop()
        # Memory-mapped: many trials of one machine share the pages of the system's cache.
        table = pa.concat_tables(pq.read_table(file, memory_map=True) for file in files)
        self.labels: np.ndarray = table["label"].to_numpy()
        self._bytes = pa.chunked_array(table["image"].combine_chunks().field("bytes"))
        self._eval_views: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Image.Image:
        """One picture, RGB."""
        return Image.open(io.BytesIO(self._bytes[index].as_py())).convert("RGB")

    def eval_batches(
        self, size: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One worker's share as ((B, 3, size, size) uint8, (B,) int64), each picture once."""
        mine = torch.arange(rank, len(self), world_size)
        if len(mine) * 3 * size * size > KEEP_BYTES:
            for chunk in mine.split(batch_size):
                yield self._decode_eval(chunk, size), torch.from_numpy(self.labels[chunk])
            return
        if self._eval_views is None or self._eval_views.shape[-1] != size:
            self._eval_views = self._decode_eval(mine, size)
        labels = torch.from_numpy(self.labels[mine])
        yield from zip(self._eval_views.split(batch_size), labels.split(batch_size), strict=True)

    def _decode_eval(self, indices: Tensor, size: int) -> Tensor:
        return torch.stack([eval_view(self.decode(int(i)), size) for i in indices])


class _TrainViews(Dataset[tuple[Tensor, Tensor]]):
    """Views by (step, sample), each a function of (seed, step, sample)."""

    def __init__(self, pictures: Pictures, size: int, seed: int, area: tuple[float, float]) -> None:
        self.pictures, self.size, self.seed, self.area = pictures, size, seed, area

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        step, sample = key
        rng = generator(self.seed, "view", step, sample)
        view = train_view(self.pictures.decode(sample), self.size, rng, self.area)
        return view, torch.as_tensor(self.pictures.labels[sample])


def train_batches(
    pictures: Pictures,
    sampler: StepSampler,
    *,
    size: int,
    crop_area: tuple[float, float] = CROP_AREA,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The steps of `sampler` as ((B, 3, size, size) uint8, (B,) int64).

    Args:
        pictures: of the ID domain's train split.
        sampler: which samples make which step.
        size: side of a view in pixels.
        crop_area: least and greatest share of a picture that a view shows.
        workers: processes that decode; 0 decodes in this one.
        pin_memory: page-locked batches, for copies to a GPU that overlap with its work.
    """
    return DataLoader(
        _TrainViews(pictures, size, sampler.seed, crop_area),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def parquet_files(root: Path, domain: str, split: str) -> list[Path]:
    """The Parquet files of a domain and split, sorted.

    Raises:
        ConfigError: names what is missing, and what is there instead.
    """
    if not root.is_dir():
        raise ConfigError(f"data.root = {str(root)!r}: no such folder")
    folder = root / domain
    if not folder.is_dir():
        present = [path.name for path in root.iterdir() if path.is_dir()]
        raise ConfigError(f"{root}: it has no domain {domain!r}{did_you_mean(domain, present)}")
    files = sorted((folder / split).glob("*.parquet"))
    if not files:
        raise ConfigError(f"{folder / split}: no *.parquet file here")
    return files
