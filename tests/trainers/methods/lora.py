"""LoRA on the image encoder, as a user adds it: one file that no module of the package imports.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685): a
weight W (d, n) of the MLPs becomes ``W + U V`` with U (d, r) = 0 at first and V (r, n) random.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.utils import parametrize

from trainers.methods import register_method
from trainers.methods.ft import PlainFineTuning


class LowRank(nn.Module):
    """``W + U V``."""

    def __init__(self, weight, rank, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], generator=rng) / rank)

    def forward(self, weight):
        return weight + self.up @ self.down


@register_method(
    "lora",
    search_space={
        "parameters": {
            "method.rank": {"type": "int", "low": 1, "high": 4},
            "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        },
        "initial_points": [{"method.rank": 2, "optim.lr": 1e-2}],
    },
)
class LoRA(PlainFineTuning):
    """Trains the low-rank changes and the head."""

    name: Literal["lora"] = "lora"
    rank: int = Field(default=2, ge=1)
    has_line: ClassVar[bool] = False
    """The mean of two products is not the product of their means."""

    def prepare(self, student):
        student.train_head()
        linear = [
            module
            for name, module in student.visual.named_modules()
            if isinstance(module, nn.Linear) and ".mlp." in name
        ]
        for seed, module in enumerate(linear):
            change = LowRank(module.weight, self.rank, seed)
            parametrize.register_parametrization(module, "weight", change)
