"""The zero-shot model's features that a run needs, shared by all trials of a machine.

Training views are functions of (seed, step, sample) and random texts of (seed, step), so trials of
one seed need the same features of them at the same steps. The first trial that gets there computes
and stores them (`trainers.data.feature_cache`), the others read them.

Features of views and of random texts are rounded to float16: each value changes by at most 1 part
in 2048, and a feature vector by 2e-4 of its length on average. Features of evaluated images are
stored as they are. A record is always computed from the same inputs in one
forward pass of the same size, so a run does not depend on which features were there before.

A method with texts of its own for each view (StarFT) asks the zero-shot model itself: with rounded
features of both, its regulariser differed by 8 % within four steps of the tiny CLIP.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.data.feature_cache import FeatureFile
from trainers.data.store import open_root
from trainers.data.transforms import normalise
from trainers.distributed import world
from trainers.evaluation.evaluate import Classify, EvalBatches, image_features
from trainers.loop.precision import Precision
from trainers.models.zero_shot import ZeroShotModel

NOT_OF_VIEWS = {"root", "suite", "id_domain", "ood_domains", "crop_pct", "workers"}
"""Keys of `data` without effect on the views of given images."""


class ZeroShotFeatures:
    """The zero-shot model's features for one worker of a run, on the model's device.

    If `zero_shot_cache_gb` is 0, they are computed at every call and not rounded.
    """

    def __init__(self, zero_shot: ZeroShotModel, config: TrialConfig, precision: Precision) -> None:
        self._zero_shot, self._config, self._precision = zero_shot, config, precision
        self._rank, self._world_size = world()
        self.batches = EvalBatches(
            zero_shot.image_input,
            config.eval.batch_size,
            zero_shot.device,
            config.data.loader_processes(on_gpu=zero_shot.device.type == "cuda"),
            self._rank,
            self._world_size,
        )
        """Those of evaluations, in which evaluated images are encoded, too."""
        self._limit = int(config.zero_shot_cache_gb * 1e9)
        self._files: dict[tuple[object, ...], FeatureFile] = {}
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._random_texts: dict[tuple[int, int, int], Tensor] = {}

    def of_views(self, views: Tensor, step: int, first: int, at_once: int) -> Tensor:
        """Features (B, D) of a part of a step's views.

        Args:
            views: (B, 3, H, W) uint8.
            step: index of the optimiser step.
            first: index of the first view in the worker's share of the step.
            at_once: B of all parts but the last, which may be smaller.
        """
        config, zero_shot = self._config, self._zero_shot
        parts = math.ceil(config.optim.batch_size / self._world_size / at_once)
        record = (step * self._world_size + self._rank) * parts + first // at_once
        records = config.steps * self._world_size * parts
        of = (*self._of_images, self._train_images, config.seed, config.optim.batch_size, at_once)
        file = self._file(("views", *of), records, at_once)

        def encode() -> Tensor:
            return self._encode(normalise(views, zero_shot.image_input))

        return self._shared(file, record, len(views), encode)

    def of_images(self, images: ImageDataset) -> Tensor:
        """Features (n, D) of this worker's share of evaluated images, on the CPU, not rounded.

        They are computed as in the evaluation, in its precision and batches, so that they are those
        of an unchanged student. They are kept in memory. A worker that is alone takes those of a
        sample from those of the whole split, which the last evaluation needs as well.
        """
        is_sample = len(images.eval_rows) < len(images)
        if is_sample and self._world_size == 1:
            return self.of_images(images.whole)[torch.tensor(images.eval_rows)]
        key = ("images", *self._of_images, images.version, images.crop_pct, self.batches.batch_size)
        if is_sample:
            key += ("sample", len(images.eval_rows))
        rank, world_size, rows = self._rank, self._world_size, images.eval_rows
        share, largest = len(rows[rank::world_size]), len(rows[::world_size])
        file = self._file(key, world_size, largest, torch.float32)
        encode = partial(image_features, self._encode, images, self.batches)
        if key not in self._kept:
            self._kept[key] = self._shared(file, rank, share, encode).cpu()
        return self._kept[key]

    def classifier(self, images: ImageDataset) -> Classify:
        """The zero-shot model for one evaluation of these images, by their features.

        It is called with the batches of the evaluation in their order, and does not look at them.
        """
        features = self.of_images(images)
        done = 0

        def classify(views: Tensor) -> Tensor:
            nonlocal done
            rows = features[done : done + len(views)]
            logits = self._zero_shot.logits(rows.to(self._zero_shot.device))
            done += len(views)  # without memory for the logits, smaller batches follow
            return logits

        return classify

    def of_random_texts(self, count: int, length: int, step: int) -> Tensor:
        """L2-normalised features (count, D) of a step's random texts of `length` tokens.

        Those asked for last are kept: the parts of a step share them.
        """
        asked = (count, length, step)
        if asked in self._random_texts:
            return self._random_texts[asked]
        zero_shot, seed = self._zero_shot, self._config.seed

        def encode() -> Tensor:
            tokens = zero_shot.random_tokens(count, length, seed=seed, step=step)
            return zero_shot.encode_tokens(to_device(tokens, zero_shot.device))

        key = ("random texts", *self._of_texts, count, length, seed)
        file = self._file(key, self._config.steps, count)
        self._random_texts = {asked: self._shared(file, step, count, encode)}
        return self._random_texts[asked]

    def _shared(
        self, file: FeatureFile | None, record: int, rows: int, compute: Callable[[], Tensor]
    ) -> Tensor:
        """The features in a record, computed and stored if they are not there."""
        found = None if file is None else file.read(record, rows)
        if found is None:
            found = compute()
            if file is not None:
                found = file.write(record, found)
        return to_device(found, self._zero_shot.device)

    def _file(
        self, key: tuple[object, ...], records: int, rows: int, dtype: torch.dtype = torch.float16
    ) -> FeatureFile | None:
        """The file of all that `key` tells apart; None if nothing is shared."""
        size = {"records": records, "rows": rows, "width": self._zero_shot.head.shape[1]}
        if self._limit and key not in self._files:
            self._files[key] = FeatureFile(key, **size, dtype=dtype, limit_bytes=self._limit)
        return self._files.get(key)

    @cached_property
    def _of_texts(self) -> tuple[object, ...]:
        """All that features of texts depend on, besides the texts."""
        where = self._zero_shot.device
        on_gpu = where.type == "cuda"
        computed_by = torch.cuda.get_device_name(where) if on_gpu else torch.get_num_threads()
        texts = hashlib.sha256(self._zero_shot.vocabulary.ids.tobytes()).hexdigest()
        products = torch.get_float32_matmul_precision()
        return self._zero_shot.digest, texts, computed_by, products

    @cached_property
    def _of_images(self) -> tuple[object, ...]:
        """All that features of images depend on, besides the images."""
        precision, image_input = str(self._precision.dtype), repr(self._zero_shot.image_input)
        return *self._of_texts, image_input, precision, self._world_size

    @cached_property
    def _train_images(self) -> tuple[object, ...]:
        """The training images and all settings of their views."""
        data = self._config.data
        if not self._limit:
            return ()
        root = open_root(data.root)
        train = ImageDataset(root, data.id_domain, "train")
        return train.version, data.model_dump_json(exclude=NOT_OF_VIEWS)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        with self._precision.autocast():
            return self._zero_shot.image_features(images)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. The CPU does not wait for a GPU that works on what it was given."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
