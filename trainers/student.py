"""What is trained: the image encoder with its projection, and the classification head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainers.zero_shot import ZeroShotModel


class Student(nn.Module):
    """An image classifier that starts as the zero-shot model.

    The logit scale and the text encoder stay frozen; the head has no bias and is not normalised
    again while it trains.
    """

    logit_scale: Tensor

    def __init__(self, zero_shot: ZeroShotModel) -> None:
        super().__init__()
        self.visual = copy.deepcopy(zero_shot.visual).train().requires_grad_(True)
        self.head = nn.Parameter(zero_shot.head.clone())
        self.register_buffer("logit_scale", torch.tensor(zero_shot.logit_scale), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """L2-normalised features (B, D) and logits (B, K), both float32, of images (B, 3, H, W)."""
        features = nn.functional.normalize(self.visual(images).float(), dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            return features, self.logit_scale * features @ self.head.T
