"""StarFT: let images go with texts of what is spurious as they do in the zero-shot model.

Kim et al., "StarFT: Robust Fine-tuning of Zero-shot Models via Spuriosity Alignment", IJCAI 2025
(arXiv 2505.13232). Besides its caption c, "a photo of a dog.", an image has a spurious text: c
with a background, a texture or a resolution put to it by a template drawn at random, "a photo of a
dog on a frozen lake.". With F and U the L2-normalised features of B images and of their spurious
texts under the current encoders, F0 and U0 those of the same views and texts under the zero-shot
model, s the pre-trained logit scale, and y the classes::

    Z   = s F U',  Z0 = s F0 U0',  both without the pairs y_i = y_j, the diagonal among them
    reg = mean over i of  KL( softmax_j Z0_ij || softmax_j Z_ij )
    loss = contrastive loss of images and captions (FLYP's)  +  w * reg

An image is so compared with spurious texts of the other classes alone, and only in the direction
from image to texts. The caption is always of one template, and w starts at `reg_weight` 0.5 and
falls to 0, as in the authors' code; theirs falls once an epoch, w0 (1 - (e + 1) / E), ours at every
step. Their templates come from a language model; those in `spurious_templates.yaml` are our own.

With ``task = "cross_entropy"`` it is cross-entropy on a trained head in place of the contrastive
loss. Only the image encoder and the head train then: that U stays U0, and that this head is the one
that is evaluated, are our choices. The authors' figures, of 10 epochs on ImageNet, have not been
reproduced here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias, cast

import yaml
from pydantic import Field
from torch import Tensor

from trainers.methods.base import (
    Batch,
    Loss,
    Method,
    Schedule,
    Step,
    StepRandom,
    Texts,
    cross_entropy,
    kl_divergence,
    scheduled,
    zero,
)
from trainers.methods.flyp import contrastive_loss, similarities
from trainers.methods.registry import register_method
from trainers.models.student import Outputs, Student
from trainers.texts.prompts import Prompts

Attributes: TypeAlias = Literal["background", "texture", "resolution"]

CAPTION = "a photo of a {}."

SPURIOUS = -1
"""Which kind of text they are: the last."""

LEFT_OUT = -1e8
"""A logit of probability 0. A row of nothing else is uniform on both sides: its divergence is 0."""


@register_method("star_ft")
class StarFineTuning(Method):
    """StarFT with the defaults of the authors' code."""

    name: Literal["star_ft"] = "star_ft"
    reg_weight: float = Field(default=0.5, ge=0)
    """Weight of the regulariser in the first step."""
    reg_schedule: Schedule = "linear"
    """How it falls to 0, or that it does not."""
    task: Literal["contrastive", "cross_entropy"] = "contrastive"
    """What is learnt of the images: their captions, both encoders training, or their classes."""
    attributes: Attributes = "background"
    """What the spurious texts name."""

    def prepare(self, student: Student) -> None:
        """Let both encoders train for captions; the image encoder and the head for classes."""
        if self.task == "contrastive":
            student.train_both_encoders()
        else:
            student.train_image_encoder()

    @property
    def per_image(self) -> bool:
        """An image is compared with the texts of others: not in plain cross-entropy alone."""
        return self.task == "cross_entropy" and not self.needs_zero_shot

    @property
    def needs_zero_shot(self) -> bool:
        """The regulariser compares with the zero-shot model, unless its weight is 0."""
        return self.reg_weight > 0

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> Texts:
        """Captions where they are learnt, then spurious texts where they weigh anything."""
        captions = [CAPTION.replace("{}", prompts.names[label]) for label in labels]
        kinds = [captions] if self.task == "contrastive" else []
        if self.needs_zero_shot:
            kinds.append(spurious_texts(captions, self.attributes, draw))
        return kinds

    def loss(self, batch: Batch, step: Step) -> Loss:
        """The contrastive loss or cross-entropy, plus the divergence on spurious texts."""
        if self.task == "contrastive":
            task = contrastive_loss(similarities(batch.student))
        else:
            task = cross_entropy(batch)
        weight = scheduled(self.reg_weight, self.reg_schedule, step)
        reg = spurious_divergence(batch) if self.needs_zero_shot else zero(task)
        return Loss(task=task, reg=reg, reg_weight=weight)


def spurious_divergence(batch: Batch) -> Tensor:
    """The mean KL divergence of the images' distributions over spurious texts, a scalar.

    Args:
        batch: with the zero-shot model's outputs. Spurious texts are the last of its kinds; where
            the student has no text encoder, its features of them are the zero-shot model's.
    """
    zero_shot, student = cast(Outputs, batch.zero_shot), batch.student
    if len(student.text_features) == 0:
        student = student._replace(text_features=zero_shot.text_features)
    before = similarities(zero_shot, SPURIOUS)
    after = similarities(student._replace(logit_scale=zero_shot.logit_scale), SPURIOUS)
    of_own_class = batch.labels[:, None] == batch.labels
    return kl_divergence(
        before.masked_fill(of_own_class, LEFT_OUT), after.masked_fill(of_own_class, LEFT_OUT)
    )


def spurious_texts(captions: Sequence[str], attributes: Attributes, draw: StepRandom) -> list[str]:
    """Every caption, without its full stop, in a template drawn at random."""
    templates = spurious_templates(attributes)
    drawn = draw.choose("spurious text", len(templates))
    return [
        templates[template].replace("{}", caption.removesuffix("."))
        for template, caption in zip(drawn, captions, strict=True)
    ]


@cache
def spurious_templates(attributes: Attributes) -> tuple[str, ...]:
    """The templates of `spurious_templates.yaml`, each with one `{}` for the caption."""
    file = files("trainers.texts").joinpath("spurious_templates.yaml")
    return tuple(yaml.safe_load(file.read_text(encoding="utf-8"))[attributes])
