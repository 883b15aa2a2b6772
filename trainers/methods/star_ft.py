"""StarFT: keep the zero-shot model's similarities of images and texts of spurious attributes.

Kim et al., "StarFT: Robust Fine-tuning of Zero-shot Models via Spuriosity Alignment", IJCAI 2025
(arXiv 2505.13232). Besides its caption c, "a photo of a dog.", an image has a spurious text: a
random template adds a background, a texture or a resolution to c, as in "a photo of a dog on a
frozen lake.". With F and U the L2-normalised features of B images and of their spurious
texts under the current encoders, F0 and U0 those of the same views and texts under the zero-shot
model, s the pre-trained logit scale, and y the classes::

    Z   = s F U',  Z0 = s F0 U0',  both without the pairs with y_i = y_j (and so the diagonal)
    reg = mean over i of  KL( softmax_j Z0_ij || softmax_j Z_ij )
    loss = contrastive loss of images and captions (FLYP's)  +  w * reg

So an image is compared with the spurious texts of other classes only, and only in the direction
from image to texts. The caption always uses the same template, and w starts at `reg_weight` 0.5 and
falls to 0, as in the authors' code; there it falls once an epoch, w0 (1 - (e + 1) / E), here at
every step. Their templates come from a language model; those in `spurious_templates.yaml` were
written for this project.
The authors' results, of 10 epochs on ImageNet, have not been reproduced here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from trainers.methods.base import (
    Batch,
    Loss,
    Schedule,
    Step,
    StepRandom,
    Texts,
    kl_divergence,
    scheduled,
)
from trainers.methods.flyp import ContrastiveMethod, contrastive_loss, similarities
from trainers.methods.registry import register_method
from trainers.texts import Prompts
from trainers.yaml_text import read_yaml

Attributes: TypeAlias = Literal["background", "texture", "resolution"]

CAPTION = "a photo of a {}."

SPURIOUS = 1
"""Index of the spurious texts among the kinds of text."""

LEFT_OUT = -1e8
"""A logit of probability 0. A row of only such logits has divergence 0: both sides are uniform."""


@register_method("star_ft")
class StarFineTuning(ContrastiveMethod):
    """StarFT with the defaults of the authors' code."""

    name: Literal["star_ft"] = "star_ft"
    reg_weight: float = Field(default=0.5, ge=0, le=1e6)
    """Weight of the regulariser in the first step."""
    reg_schedule: Schedule = "linear"
    """How the weight falls to 0 over the run, or `constant`."""
    attributes: Attributes = "background"
    """Attribute that the spurious texts describe."""

    @property
    def needs_zero_shot(self) -> bool:
        return self.reg_weight > 0

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> Texts:
        captions = [CAPTION.replace("{}", prompts.names[label]) for label in labels]
        if not self.needs_zero_shot:
            return (captions,)
        templates = spurious_templates(self.attributes)
        drawn = draw.choose("spurious text", len(templates))
        without_stop = [caption.removesuffix(".") for caption in captions]
        spurious = [templates[n].replace("{}", c) for n, c in zip(drawn, without_stop, strict=True)]
        return captions, spurious

    def loss(self, batch: Batch, step: Step) -> Loss:
        task = contrastive_loss(similarities(batch.student))
        if batch.zero_shot is None:
            return Loss(task)
        # The student's similarities have the pre-trained scale, too.
        student = batch.student._replace(logit_scale=batch.zero_shot.logit_scale)
        of_own_class = batch.labels[:, None] == batch.labels
        before, now = (
            similarities(of, SPURIOUS).masked_fill(of_own_class, LEFT_OUT)
            for of in (batch.zero_shot, student)
        )
        weight = scheduled(self.reg_weight, self.reg_schedule, step)
        return Loss(task, kl_divergence(before, now), weight)


@cache
def spurious_templates(attributes: Attributes) -> tuple[str, ...]:
    """The templates of `spurious_templates.yaml`, each with one `{}` for the caption."""
    return tuple(read_yaml(Path(__file__).with_name("spurious_templates.yaml"))[attributes])
