"""FLYP: fine-tune as CLIP was pre-trained, with its contrastive loss.

Goyal, Kumar, Garg, Kolter and Raghunathan, "Finetune like you pretrain: Improved finetuning of
zero-shot vision models", CVPR 2023 (arXiv 2212.00638). With F and T the L2-normalised features of
B images and of a text of each one's class, and s the logit scale, which is trained too::

    S    = s F T'                                                        (B, B)
    loss = (cross_entropy(S, 0 .. B-1) + cross_entropy(S', 0 .. B-1)) / 2

As in the authors' code, an image's text is one of the prompt templates, any at each step; images
of one class are each other's negatives, so that with few classes and large batches many are; all
parameters of the CLIP train. It is evaluated with the zero-shot head of the text encoder as it then
is. Their figures, of 10 epochs on ImageNet, have not been reproduced here.
"""

from __future__ import annotations

from typing import Literal

from trainers.methods.base import Batch, Loss, Step, zero
from trainers.methods.contrastive import ContrastiveMethod, contrastive_loss, similarities


class ContrastiveFineTuning(ContrastiveMethod):
    """FLYP; it has no hyperparameters of its own."""

    name: Literal["flyp"] = "flyp"

    def loss(self, batch: Batch, step: Step) -> Loss:
        """The contrastive loss; its regulariser is 0."""
        task = contrastive_loss(similarities(batch.student))
        return Loss(task=task, reg=zero(task), reg_weight=0.0)
