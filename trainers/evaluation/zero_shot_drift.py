"""How far from the zero-shot model a student is measured to be: the other half of the comparison.

The zero-shot features of the evaluated images are computed once a run, and kept in memory.
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
"""Tokens of the random texts of `energy_gap`: Lipsum-FT's default, whatever a method uses."""


class DriftReference:
    """The zero-shot model's features of each domain, and the texts whose scores are compared.

    Args:
        zero_shot: the model.
        config: of the run, for how images are evaluated.
        precision: of the run, for a student that has not moved has no distance.
        rank: of this worker, whose share of the images is kept.
        world_size: number of workers.
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
        self._second_moment = energy_texts(zero_shot)
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


def energy_texts(zero_shot: ZeroShotModel) -> Tensor:
    """The second moment (D, D) of the texts of `energy_gap`.

    Random ones as Lipsum-FT has them, the same for every run; a model whose tokenizer has no random
    texts is compared on its class prompts.
    """
    if not zero_shot.has_random_texts:
        return second_moment(zero_shot.head)
    length = min(TEXT_LENGTH, zero_shot.text.context_length - 2)
    return random_text_moment(zero_shot, length)
