"""FLYP: fine-tune with the contrastive loss of CLIP's pre-training.

Goyal, Kumar, Garg, Kolter and Raghunathan, "Finetune like you pretrain: Improved finetuning of
zero-shot vision models", CVPR 2023 (arXiv 2212.00638). Each of the B images is paired with a text
of its class. With F and T the L2-normalised features of images and texts, and s the logit scale,
which is trained too::

    S    = s F T'                                                        (B, B)
    loss = (cross_entropy(S, 0 .. B-1) + cross_entropy(S', 0 .. B-1)) / 2

As in the authors' code, the text of an image is one of the prompt templates, drawn again at every
step; images of the same class are negatives of each other (frequent with few classes and large
batches); and all parameters of the CLIP train. Evaluation uses the zero-shot head of the current
text encoder. The authors' results, of 10 epochs on ImageNet, have not been reproduced here.

StarFT, CaRot and R-Adapter build on this module: they also run both encoders at every step and
compare the images of the whole batch, those of all workers, with each other's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trainers.methods.base import Batch, Loss, Method, Step, StepRandom, Texts
from trainers.methods.registry import register_method
from trainers.texts import Prompts

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.models.student import Outputs, Student


class ContrastiveMethod(Method):
    """Base of the methods that compare the images of a batch with each other's captions."""

    def prepare(self, student: Student) -> None:
        student.train_both_encoders()

    @property
    def per_image(self) -> bool:
        """False: the loss of an image depends on the captions of the others."""
        return False

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> Texts:
        """One kind: the class in one of the templates, drawn again at every step.

        The authors of FLYP, CaRot and R-Adapter shuffle a table of every image in every template
        and take the next rows, so that some images come more often than others. Here every image
        comes once an epoch.
        """
        drawn = draw.choose("caption", len(prompts.templates))
        pairs = zip(drawn, labels, strict=True)
        return ([prompts.templates[n].replace("{}", prompts.names[label]) for n, label in pairs],)


@register_method("flyp")
class ContrastiveFineTuning(ContrastiveMethod):
    """FLYP; it has no hyperparameters of its own."""

    name: Literal["flyp"] = "flyp"

    def loss(self, batch: Batch, step: Step) -> Loss:
        return Loss(contrastive_loss(similarities(batch.student)))


def similarities(outputs: Outputs, kind: int = 0) -> Tensor:
    """``S = s F T'``, (B, B): the scaled cosines of images, in rows, and texts of a kind."""
    return outputs.logit_scale * outputs.features @ outputs.text_features[kind].T


def contrastive_loss(scores: Tensor) -> Tensor:
    """Mean of the cross-entropies of images against texts and of texts against images, a scalar.

    Images of the same class are negatives of each other, as in the code of FLYP's authors.
    `scores` (B, B) are those of `similarities`.
    """
    import torch
    from torch.nn import functional

    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
