"""What is trained: the image encoder with its projection, and the classification head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainers.models import pooled_features
from trainers.zero_shot import ZeroShotModel


class Student(nn.Module):
    """An image classifier that starts as the zero-shot model.

    The logit scale and the text encoder stay frozen; the head has no bias and is not normalised
    again while it trains.

    The encoder is always in evaluation mode, though its parameters train. A ResNet's running
    statistics stay the pre-trained ones: those of a worker's share of a batch would differ between
    workers, and the features would leave the zero-shot model's before the first step. Dropout,
    patch dropout and stochastic depth of pre-training are off: the regularisers compare features
    of one view, and what is random here is a function of (seed, step, sample). CLIP's
    transformers have none of these and are the same in both modes.
    """

    logit_scale: Tensor

    def __init__(self, zero_shot: ZeroShotModel) -> None:
        super().__init__()
        self.visual = copy.deepcopy(zero_shot.visual)
        for name, parameter in self.visual.named_parameters():
            parameter.requires_grad_(name in zero_shot.trainable)
        self.head = nn.Parameter(zero_shot.head.clone())
        self.register_buffer("logit_scale", torch.tensor(zero_shot.logit_scale), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> Student:
        """Everything but the encoder, which stays in evaluation mode."""
        super().train(mode)
        self.visual.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """L2-normalised features (B, D) and logits (B, K), both float32, of images (B, 3, H, W)."""
        features = nn.functional.normalize(pooled_features(self.visual, images).float(), dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            return features, self.logit_scale * features @ self.head.T
