"""Batches of images for training and evaluation, decoded by processes or by this one.

Whatever is random in a view is a function of (seed, step, sample), so it depends neither on the
number of processes nor on where a run was resumed.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from trainers.data import record_file
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset
from trainers.data.record_file import RecordFile, RecordFolder
from trainers.data.transforms import augmentation, eval_view, train_view
from trainers.errors import ConfigError
from trainers.models.image import ImageInput
from trainers.seeding import generator

KEEP_BYTES = 1 << 29
"""Evaluation views of one domain and split of up to this size (512 MiB) stay decoded."""

KEPT_BYTES = 4 << 30
"""Limit of all such views in a process. Beyond it, those that were not used for longest go."""

DECODED_BY = (PIL.__version__, torchvision.__version__)
"""What the pixels of a resized image depend on, besides the image."""

_kept_views: dict[tuple[object, ...], Tensor] = {}
"""Evaluation views of this process, which outlive its trials; the ones used last are at the end."""


def eval_batches(
    images: ImageDataset,
    image_input: ImageInput,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    *,
    pin_memory: bool = False,
    decoded: RecordFolder | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One worker's share as ((B, 3, size, size) uint8, (B,) int64), each image once.

    The last batch may be smaller. Small sets are kept in memory by the process. Larger ones are
    read by `workers` processes (0: by this one) at each evaluation, into page-locked memory if
    `pin_memory`. An image is decoded by the first process of this machine that needs it, if there
    is room where they share it.

    Args:
        decoded: where the processes of this machine share decoded images; None shares none.
    """
    mine = images.eval_rows[rank::world_size]
    is_large = len(mine) * 3 * image_input.size**2 > KEEP_BYTES
    options = {"batch_size": batch_size, "pin_memory": pin_memory and is_large}
    shared = _shared_views(images, image_input, decoded)
    read = _read(_EvalViews(images, image_input, shared), mine, workers, **options)
    if is_large:
        yield from read
        return
    of_images = (images.store.url, images.name, images.version, images.crop_pct)
    key = (*of_images, len(images.eval_rows), image_input, rank, world_size)
    views = _kept_views.pop(key, None)
    if views is None:
        views = torch.cat([v for v, _ in read] or [torch.empty(0, dtype=torch.uint8)])
    _kept_views[key] = views
    while sum(kept.nbytes for kept in _kept_views.values()) > KEPT_BYTES:
        del _kept_views[next(iter(_kept_views))]
    labels = torch.from_numpy(images.labels[mine])
    yield from zip(views.split(batch_size), labels.split(batch_size), strict=True)


def _read(
    views: _EvalViews, rows: Sequence[int], workers: int, **options: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over some rows, after which a disk that takes no views is asked no more."""
    yield from _batches(views, workers, sampler=rows, **options)
    shared = views.shared
    if shared is not None and shared.is_open and rows and shared.read(rows[-1], 1) is None:
        shared.close("loader processes cannot write them")


def _shared_views(
    images: ImageDataset, image_input: ImageInput, folder: RecordFolder | None
) -> RecordFile | None:
    """The views of all images of a set by row, as far as processes have decoded them."""
    if folder is None:
        return None
    identity = (images.version, images.crop_pct, repr(image_input), DECODED_BY)
    return _opened(folder, identity, len(images), 3 * image_input.size**2)


@lru_cache(maxsize=64)  # the trials of a process read the same splits
def _opened(
    folder: RecordFolder, identity: tuple[object, ...], images: int, nbytes: int
) -> RecordFile:
    return RecordFile(folder, identity, records=images, rows=1, width=nbytes, dtype=torch.uint8)


@dataclass(eq=False)
class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (step, sample) for one worker, from any step on.

    Each epoch is a permutation of all samples. The steps cut the endless sequence of epochs into
    global batches, and worker `rank` of `world_size` takes its even share of each. So the global
    batch of a step depends neither on the number of workers nor on where a run was resumed.
    """

    num_samples: int
    batch_size: int
    _: KW_ONLY
    seed: int
    steps: range
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = -1
        order = np.empty(0, dtype=np.int64)
        for step in self.steps:
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = generator(self.seed, "epoch", epoch).permutation(self.num_samples)
                batch.append((step, int(order[position % self.num_samples])))
            yield batch[self.rank :: self.world_size]


def train_batches(
    images: ImageDataset,
    sampler: StepSampler,
    image_input: ImageInput,
    data: DataConfig,
    *,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of `sampler` as ((B, 3, size, size) uint8, (B,) int64).

    `data.workers` processes decode (0: this one). Copies of page-locked batches (`pin_memory`) to a
    GPU overlap with its work.
    """
    augment = augmentation(data.augment, image_input)
    views = _TrainViews(images, image_input, data, augment, sampler.seed)
    workers = data.loader_processes(on_gpu=pin_memory)
    return _batches(views, workers, batch_sampler=sampler, pin_memory=pin_memory)


def eval_samples(
    images: ImageDataset,
    samples: Iterable[list[int]],
    image_input: ImageInput,
    workers: int = 0,
    *,
    decoded: RecordFolder | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen images as evaluation sees them: ((B, 3, size, size) uint8, (B,) int64) a batch."""
    shared = _shared_views(images, image_input, decoded)
    return _batches(_EvalViews(images, image_input, shared), workers, batch_sampler=samples)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. The CPU does not wait for a GPU that works on what it was given."""
    if device.type == "cuda" and not (tensor.is_cuda or tensor.is_pinned()):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(eq=False)
class _EvalViews(Dataset[tuple[Tensor, Tensor]]):
    images: ImageDataset
    image_input: ImageInput
    shared: RecordFile | None = None
    """Views by row that processes of this machine have decoded."""

    def __getitem__(self, sample: int) -> tuple[Tensor, Tensor]:
        label = torch.as_tensor(self.images.labels[sample])
        size = self.image_input.size
        known = None if self.shared is None else self.shared.read(sample, 1)
        if known is not None:
            return known.view(3, size, size), label
        view = eval_view(self.images.decode(sample), self.image_input, self.images.crop_pct)
        if self.shared is not None:
            self.shared.write(sample, view.reshape(1, -1))
        return view, label


@dataclass(eq=False)
class _TrainViews(Dataset[tuple[Tensor, Tensor]]):
    """Views by (step, sample), each a function of (seed, step, sample)."""

    images: ImageDataset
    image_input: ImageInput
    data: DataConfig
    augment: nn.Module | None
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        step, sample = key
        rng = generator(self.seed, "view", step, sample)
        image = self.images.pixels(sample)
        view = train_view(image, self.image_input, rng, self.data, self.augment)
        return view, torch.as_tensor(self.images.labels[sample])


def _batches(
    views: _EvalViews | _TrainViews, workers: int, **options: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass, by `workers` processes or this one; an error of a process as if of this one."""
    if workers and sys.platform == "linux":
        options["multiprocessing_context"] = "fork"  # others import PyTorch anew in each process
    batches = iter(DataLoader(views, num_workers=workers, worker_init_fn=_silent, **options))
    try:
        yield from batches
        return
    except ConfigError as error:
        last = str(error).strip().splitlines()[-1]
        failure = ConfigError(last.removeprefix("trainers.errors.ConfigError: "))
        error.__traceback__ = None  # it holds the loader, whose processes would end late
    except RuntimeError:
        # Outside of the main thread, PyTorch 2.13 does not name the signal.
        ended = [process.exitcode for process in getattr(batches, "_workers", ())]
        if -signal.SIGBUS not in ended:
            raise
        problem = "/dev/shm is full: a process that decodes images was killed"
        hint = "start the container with --shm-size=8g, or lower the number of processes"
        failure = ConfigError(problem, key="trial.data.workers", hint=hint)
    finally:
        del batches  # as the traceback
    raise failure


def _silent(worker: int) -> None:
    """Have a loader process leave it to its parent to say that nothing can be shared."""
    logging.getLogger(record_file.__name__).setLevel(logging.ERROR)
