"""The zero-shot model's features that a run needs, shared by all trials of a machine.

Training views are functions of (seed, step, sample) and random texts of (seed, step), so trials of
one seed need the same features of them at the same steps. The first trial that gets there computes
and stores them (`trainers.data.record_file`), the others read them.

Features of views and of random texts are rounded to float16: each value changes by at most 1 part
in 2048, and a feature vector by 2e-4 of its length on average. Features of evaluated images are
stored as they are. A record is always computed from the same inputs in one forward pass of the same
size, so a run does not depend on which features were there before.

A method with texts of its own for each view (StarFT) asks the zero-shot model itself: with rounded
features of both, its regulariser differed by 8 % within four steps of the tiny CLIP.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.data.loaders import to_device
from trainers.data.record_file import RecordFile, RecordFolder
from trainers.data.store import open_root
from trainers.data.transforms import normalise
from trainers.distributed import world
from trainers.evaluation.evaluate import EvalBatches, image_features
from trainers.loop.precision import Precision
from trainers.models.zero_shot import ZeroShotModel

NOT_OF_VIEWS = {
    *("root", "suite", "id_domain", "ood_domains", "crop_pct", "workers", "decoded_gb", "cache_dir")
}
"""Keys of `data` without effect on the views of given images."""


class ZeroShotFeatures:
    """The zero-shot model's features for one worker, on the model's device.

    If `zero_shot_cache_gb` is 0, they are computed at every call and not rounded.
    """

    def __init__(
        self,
        config: TrialConfig,
        zero_shot: ZeroShotModel,
        precision: Precision,
        batches: EvalBatches,
    ) -> None:
        self._config, self._zero_shot = config, zero_shot
        self._precision, self._batches = precision, batches
        self._limit = int(config.zero_shot_cache_gb * 1e9)
        self._files: dict[str, RecordFile] = {}
        self._evaluated: dict[tuple[object, ...], Tensor] = {}
        """Features of evaluated images, on the CPU."""
        self._random_texts: dict[tuple[int, int, int], Tensor] = {}
        """Features that were asked for last."""

    def of_views(self, views: Tensor, step: int, first: int, micro_batch_size: int) -> Tensor:
        """Features (B, D) of a micro-batch of a step.

        Args:
            views: (B, 3, H, W) uint8.
            step: index of the optimiser step.
            first: index of the first view in the worker's share of the step.
            micro_batch_size: B of all micro-batches but the last, which may be smaller.
        """
        config = self._config
        rank, world_size = world()
        of_worker = math.ceil(config.optim.batch_size / world_size / micro_batch_size)
        of_step = world_size * of_worker
        record = step * of_step + rank * of_worker + first // micro_batch_size
        depends_on = {
            **self._of_images,
            "training images": self._train_images,
            "seed": config.seed,
            "batch": config.optim.batch_size,
            "micro-batch": micro_batch_size,
        }
        file = self._file("views", depends_on, config.steps * of_step, micro_batch_size)

        def encode() -> Tensor:
            return self._encode(normalise(views, self._zero_shot.image_input))

        return self._shared(file, record, len(views), encode)

    def of_images(self, images: ImageDataset) -> Tensor:
        """Features (n, D) of this worker's share of evaluated images, on the CPU, not rounded.

        They are computed as in the evaluation, in its precision and batches, so that they are those
        of an unchanged student. They are kept in memory. A worker that is alone takes those of a
        sample from those of the whole split, which the last evaluation needs as well.
        """
        rank, world_size = world()
        rows = images.eval_rows
        is_sample = len(rows) < len(images)
        if is_sample and world_size == 1:
            return self.of_images(images.whole)[torch.tensor(rows)]
        key = images.version, images.crop_pct, len(rows)
        if key not in self._evaluated:
            share, largest = rows[rank::world_size], rows[::world_size]
            depends_on = {
                **self._of_images,
                "images": images.version,
                "crop": images.crop_pct,
                "batch": self._batches.batch_size,
                "sample": len(rows) if is_sample else None,
            }
            file = self._file("images", depends_on, world_size, len(largest), torch.float32)
            encode = partial(image_features, self._encode, images, self._batches)
            self._evaluated[key] = self._shared(file, rank, len(share), encode).cpu()
        return self._evaluated[key]

    def of_random_texts(self, count: int, length: int, step: int) -> Tensor:
        """L2-normalised features (count, D) of a step's random texts of `length` tokens.

        Those asked for last are kept: the micro-batches of a step share them.
        """
        asked = count, length, step
        if asked not in self._random_texts:
            config, zero_shot = self._config, self._zero_shot

            def encode() -> Tensor:
                tokens = zero_shot.random_tokens(count, length, seed=config.seed, step=step)
                return zero_shot.encode_tokens(to_device(tokens, zero_shot.device))

            texts = {"count": count, "length": length, "seed": config.seed}
            file = self._file("random texts", self._of_texts | texts, config.steps, count)
            self._random_texts = {asked: self._shared(file, step, count, encode)}
        return self._random_texts[asked]

    def _shared(
        self, file: RecordFile | None, record: int, rows: int, compute: Callable[[], Tensor]
    ) -> Tensor:
        """The features in a record, computed and stored if they are not there."""
        found = None if file is None else file.read(record, rows)
        if found is None:
            found = compute()
            if file is not None:
                found = file.write(record, found)
        return to_device(found.float(), self._zero_shot.device)

    def _file(
        self,
        kind: str,
        depends_on: Mapping[str, object],
        records: int,
        rows: int,
        dtype: torch.dtype = torch.float16,
    ) -> RecordFile | None:
        """The file of features of a kind that depend on all this; None if nothing is shared."""
        if not self._limit:
            return None
        identity = json.dumps([kind, depends_on], sort_keys=True)
        if identity not in self._files:
            width = self._zero_shot.head.shape[1]
            size = {"records": records, "rows": rows, "width": width}
            path = self._config.data.cache_path / "lipsum-tune-features"
            folder = RecordFolder(path, self._limit, "features of the zero-shot model")
            self._files[identity] = RecordFile(folder, [identity], **size, dtype=dtype)
        return self._files[identity]

    @cached_property
    def _of_texts(self) -> dict[str, Any]:
        """All that features of texts depend on, besides the texts."""
        zero_shot, where = self._zero_shot, self._zero_shot.device
        on_gpu = where.type == "cuda"
        return {
            "model": zero_shot.digest,
            "vocabulary": hashlib.sha256(zero_shot.vocabulary.ids.tobytes()).hexdigest(),
            "computed by": torch.cuda.get_device_name(where) if on_gpu else torch.get_num_threads(),
            "products": torch.get_float32_matmul_precision(),
        }

    @cached_property
    def _of_images(self) -> dict[str, Any]:
        """All that features of images depend on, besides the images."""
        return {
            **self._of_texts,
            "input": repr(self._zero_shot.image_input),
            "precision": str(self._precision.dtype),
            "workers": world()[1],
        }

    @cached_property
    def _train_images(self) -> list[str]:
        """The training images and all settings of their views."""
        data = self._config.data
        if not self._limit:
            return []
        train = ImageDataset(open_root(data.root), data.id_domain, "train")
        return [train.version, data.model_dump_json(exclude=NOT_OF_VIEWS)]

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        with self._precision.autocast():
            return self._zero_shot.image_features(images)
