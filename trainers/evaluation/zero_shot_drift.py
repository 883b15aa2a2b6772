"""The zero-shot model's side of the distance between a student and the zero-shot model.

Its features of the evaluated images are computed once for each run and kept in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.evaluation.evaluate import Drift, image_features
from trainers.loop.precision import Precision
from trainers.models.zero_shot import ZeroShotModel
from trainers.texts.random_texts import random_text_moment, second_moment

TEXT_LENGTH = 8
"""Tokens of the random texts of `energy_gap`: Lipsum-FT's default, for every method."""


class DriftReference:
    """The zero-shot features of this worker's share of each domain, and the texts of `energy_gap`.

    They use the run's precision and batch size, so that an unchanged student has distance 0.
    """

    def __init__(
        self,
        zero_shot: ZeroShotModel,
        config: TrialConfig,
        precision: Precision,
        rank: int,
        world_size: int,
    ) -> None:
        self._zero_shot, self._config, self._precision = zero_shot, config, precision
        self._rank, self._world_size = rank, world_size
        # Random texts as of Lipsum-FT, the same for every run. A model without random texts is
        # compared on its class prompts.
        if zero_shot.has_random_texts:
            length = min(TEXT_LENGTH, zero_shot.text.context_length - 2)
            self._second_moment = random_text_moment(zero_shot, length)
        else:
            self._second_moment = second_moment(zero_shot.head)
        self._features: dict[str, Tensor] = {}

    def of(self, images: ImageDataset) -> Drift:
        """The comparison for one domain and split."""
        if images.name not in self._features:
            self._features[images.name] = image_features(
                self._encode,
                images,
                self._zero_shot.image_input,
                batch_size=self._config.eval.batch_size,
                device=self._zero_shot.device,
                workers=self._config.data.workers,
                rank=self._rank,
                world_size=self._world_size,
                lockstep=self._config.parallel == "fsdp",
            )
        return Drift(self._features[images.name], self._second_moment, self._zero_shot.logit_scale)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        with self._precision.autocast():
            return self._zero_shot.image_features(images)
