"""CLIP's contrastive loss of a step's pictures, each with a text of its class.

What FLYP, StarFT, CaRot and R-Adapter have in common: both encoders run at every step, and the
pictures of the whole batch, all workers' together, are told apart by each other's texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trainers.methods.base import Draw, Method, Texts
from trainers.prompts import Prompts
from trainers.student import Outputs, Trains


class ContrastiveMethod(Method):
    """A method that tells the pictures of a batch apart by each other's captions."""

    @property
    def trains(self) -> Trains:
        """Image and text encoder, their projections and the logit scale."""
        return "both_encoders"

    @property
    def per_picture(self) -> bool:
        """The captions of others are in the loss of a picture."""
        return False

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: Draw) -> Texts:
        """One kind: the class in a random template."""
        return (random_captions(labels, prompts, draw),)


def random_captions(labels: Sequence[int], prompts: Prompts, draw: Draw) -> list[str]:
    """For each picture its class in one of the templates, drawn afresh at every step.

    The authors of FLYP, CaRot and R-Adapter shuffle a table of every picture in every template and
    take the next rows; a template drawn for each picture is the same but for their drawing without
    replacement.
    """
    drawn = draw.choose("caption", len(prompts.templates))
    return [
        prompts.templates[template].replace("{}", prompts.names[label])
        for template, label in zip(drawn, labels, strict=True)
    ]


def similarities(outputs: Outputs, kind: int = 0) -> Tensor:
    """``S = s F T'``, (B, B): the scaled cosines of pictures, in rows, and texts, in columns.

    Args:
        outputs: with text features.
        kind: of text, among the G that a picture has.
    """
    return outputs.logit_scale * outputs.features @ outputs.text_features[kind].T


def contrastive_loss(scores: Tensor) -> Tensor:
    """Cross-entropy of every picture with its text and of every text with its picture, halved.

    Pictures of the same class are told apart like any others, as the authors of FLYP do it.

    Args:
        scores: (B, B), as `similarities` gives them.
    """
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
