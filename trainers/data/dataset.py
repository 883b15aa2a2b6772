"""Labelled images of one domain and split, and batches of them for training and evaluation."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import fs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from trainers.data.config import DataConfig
from trainers.data.images import BadImage, decode, is_too_large, orientation
from trainers.data.roots import domain_files
from trainers.data.schema import Header, split_header
from trainers.data.store import CACHE_VARIABLE, Store, cache_folder, open_store
from trainers.data.transforms import augmentation, eval_view, train_view
from trainers.errors import ConfigError, StorageFailed, first_line, storage_failures
from trainers.folders import appearing, waiting_lock
from trainers.models.image import ImageInput
from trainers.seeding import generator

if TYPE_CHECKING:
    import datasets

KEEP_BYTES = 1 << 29
"""Evaluation views of one domain and split of up to this size (512 MiB) stay decoded."""

KEPT_BYTES = 4 << 30
"""Limit of all such views in a process. Beyond it, those that were not used for longest go."""

_kept_views: dict[tuple[object, ...], Tensor] = {}
"""Evaluation views of this process, which outlive its trials; the ones used last are at the end."""


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
        self._sample_size: int | None = None
        self.crop_pct = crop_pct
        """Share of the resized image's short side that evaluation sees."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def eval_rows(self) -> Sequence[int]:
        """Rows of the images that an evaluation sees, ascending."""
        if self._sample_size is None:
            return range(len(self))
        return stratified(self.labels, self._sample_size, generator(0, "evaluation sample"))

    def sampled(self, size: int) -> ImageDataset:
        """The same images, of which evaluations see a stratified sample: always the same one.

        Args:
            size: of the sample; 0, or as many images as there are, is all of them.
        """
        if not 0 < size < len(self):
            return self
        sample = copy(self)
        sample._sample_size = size
        return sample

    @property
    def whole(self) -> ImageDataset:
        """The images of which this may be a sample."""
        whole = copy(self)
        whole._sample_size = None
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

    def eval_batches(
        self,
        image_input: ImageInput,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        *,
        pin_memory: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One worker's share as ((B, 3, size, size) uint8, (B,) int64), each image once.

        The last batch may be smaller. Views of small sets are kept by the process; those of larger
        sets are decoded at each evaluation, by `workers` processes (0: by this one), into
        page-locked memory if `pin_memory`.
        """
        mine = self.eval_rows[rank::world_size]
        is_large = len(mine) * 3 * image_input.size**2 > KEEP_BYTES
        options = {"batch_size": batch_size, "pin_memory": pin_memory and is_large}
        views_of = _EvalViews(self, image_input)
        decoded = _batches(views_of, workers, sampler=mine, **options)
        if is_large:
            yield from decoded
            return
        set_of_views = (self.store.url, self.name, self.version, self.crop_pct, self._sample_size)
        key = (*set_of_views, image_input, rank, world_size)
        views = _kept_views.pop(key, None)
        if views is None:
            views = torch.cat([v for v, _ in decoded] or [torch.empty(0, dtype=torch.uint8)])
        _kept_views[key] = views
        while sum(kept.nbytes for kept in _kept_views.values()) > KEPT_BYTES:
            del _kept_views[next(iter(_kept_views))]
        labels = torch.from_numpy(self.labels[mine])
        yield from zip(views.split(batch_size), labels.split(batch_size), strict=True)

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


@dataclass(eq=False)
class _EvalViews(Dataset[tuple[Tensor, Tensor]]):
    images: ImageDataset
    image_input: ImageInput

    def __getitem__(self, sample: int) -> tuple[Tensor, Tensor]:
        image = self.images.decode(sample)
        view = eval_view(image, self.image_input, self.images.crop_pct)
        return view, torch.as_tensor(self.images.labels[sample])


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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen images as evaluation sees them: ((B, 3, size, size) uint8, (B,) int64) a batch."""
    return _batches(_EvalViews(images, image_input), workers, batch_sampler=samples)


def _batches(
    views: _EvalViews | _TrainViews, workers: int, **options: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass, by `workers` processes or this one; an error of a process as if of this one."""
    batches = iter(DataLoader(views, num_workers=workers, **options))
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
