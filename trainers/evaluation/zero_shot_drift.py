"""The zero-shot model's side of the distance between a student and the zero-shot model."""

from __future__ import annotations

from trainers.data.dataset import ImageDataset
from trainers.evaluation.evaluate import Drift
from trainers.loop.zero_shot_features import ZeroShotFeatures
from trainers.models.zero_shot import ZeroShotModel
from trainers.texts.random_texts import second_moment

TEXT_LENGTH = 8
"""Tokens of the random texts of `energy_gap`: Lipsum-FT's default, for every method."""


def drift_reference(
    zero_shot: ZeroShotModel, features: ZeroShotFeatures, images: ImageDataset
) -> Drift:
    """The comparison for one domain and split.

    `energy_gap` uses random texts as of Lipsum-FT, the same for every run. A model without random
    texts is compared on its class prompts.
    """
    if zero_shot.has_random_texts:
        length = min(TEXT_LENGTH, zero_shot.text.context_length - 2)
        moment = features.random_text_moment(length)
    else:
        moment = second_moment(zero_shot.head)
    return Drift(features.of_images(images), moment, zero_shot.logit_scale)
