"""CLIP's contrastive loss of a step's images, each with a text of its class.

What FLYP, StarFT, CaRot and R-Adapter have in common: both encoders run at every step, and the
images of the whole batch, all workers' together, are told apart by each other's texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trainers.methods.base import Method, StepRandom, Texts
from trainers.models.prompts import Prompts
from trainers.models.student import Outputs, Trains


class ContrastiveMethod(Method):
    """A method that tells the images of a batch apart by each other's captions."""

    @property
    def trains(self) -> Trains:
        """Image and text encoder, their projections and the logit scale."""
        return "both_encoders"

    @property
    def per_image(self) -> bool:
        """The captions of others are in the loss of an image."""
        return False

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> Texts:
        """One kind: the class in a random template."""
        return (random_captions(labels, prompts, draw),)


def random_captions(labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> list[str]:
    """For each image its class in one of the templates, drawn afresh at every step.

    The authors of FLYP, CaRot and R-Adapter shuffle a table of every image in every template and
    take the next rows; a template drawn for each image is the same but for their drawing without
    replacement.
    """
    drawn = draw.choose("caption", len(prompts.templates))
    return [
        prompts.templates[template].replace("{}", prompts.names[label])
        for template, label in zip(drawn, labels, strict=True)
    ]


def similarities(outputs: Outputs, kind: int = 0) -> Tensor:
    """``S = s F T'``, (B, B): the scaled cosines of images, in rows, and texts, in columns.

    Args:
        outputs: with text features.
        kind: of text, among the G that an image has.
    """
    return outputs.logit_scale * outputs.features @ outputs.text_features[kind].T


def contrastive_loss(scores: Tensor) -> Tensor:
    """Cross-entropy of every image with its text and of every text with its image, halved.

    Images of the same class are told apart like any others, as the authors of FLYP do it.

    Args:
        scores: (B, B), as `similarities` gives them.
    """
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
