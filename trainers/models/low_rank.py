"""Low-rank changes of weight matrices (LoRA), merged wherever a weight is read.

They are parametrizations of PyTorch: the package `peft` merges and unmerges the fused weights of
open_clip's attention in every forward pass, which moves the frozen weights by rounding, so that a
run would not resume bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainers.errors import ConfigError
from trainers.models.student import layers_of

_FUSED = ("in_proj_weight", "qkv.weight")
"""Queries, keys and values in one matrix, each of which has a change of its own."""


class LowRank(nn.Module):
    """``W + scale U V`` for each of `parts` of the rows of W; U is 0 before the first step."""

    def __init__(self, weight: Tensor, rank: int, scale: float, parts: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        up, down = torch.zeros(parts, rows // parts, rank), torch.empty(parts, rank, columns)
        nn.init.uniform_(down, -1 / math.sqrt(columns), 1 / math.sqrt(columns))
        self.up, self.down = nn.Parameter(up.to(weight)), nn.Parameter(down.to(weight))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, in float32 also under autocast."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down).flatten(0, 1)


def add_low_rank(encoder: nn.Module, rank: int, scale: float) -> None:
    """Change all matrices of linear layers and attention in the blocks of an encoder."""
    layers = layers_of(encoder)
    changed = 0
    for name, layer in layers.items():
        owner, _, tensor = name.rpartition(".")
        module = encoder.get_submodule(owner)
        is_linear = isinstance(module, nn.Linear) and tensor == "weight"
        if 0 < layer < max(layers.values()) and (is_linear or tensor == "in_proj_weight"):
            weight = getattr(module, tensor)
            change = LowRank(weight, rank, scale, parts=3 if name.endswith(_FUSED) else 1)
            # Safe, but the check would compute a weight, which has no values on the meta device.
            parametrize.register_parametrization(module, tensor, change, unsafe=True)
            changed += 1
    if not changed:
        problem = "the image encoder has no blocks with linear layers, which low-rank changes need"
        raise ConfigError(problem, key="method.name", value="lora", hint="name another model")
