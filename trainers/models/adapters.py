"""Residual linear adapters, merged into the weights that they follow.

R-Adapter (Kim et al., ECCV 2024, arXiv 2408.05749) puts ``h(x) = x + g A x`` after the attention
and after the MLP of every transformer block; the gain g is in the authors' code, not in the paper.
Both end in a linear layer ``y = W x + b``, and a linear map of a linear layer is linear::

    h(y) = (I + g A) W x + (I + g A) b

So the adapter is trained as a change of `W` and `b`, a parametrization of PyTorch, and merging it
is the same expression: no module is added, and inference needs no extra step. For a batch with more
tokens than the block is wide, this is also faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainers.errors import ConfigError

_SITES = (("attn.out_proj", "mlp.c_proj"), ("attn.proj", "mlp.fc2"))
"""Last layers of a block's attention and MLP: in open_clip's transformers, and in timm's."""
_DECODER = "text_decoder."

GAIN = 0.1
"""g before the first step, as in the authors' code."""


class Adapter(nn.Module):
    """``(I + scale g A) W`` for weight and bias of a layer; A is 0 before the first step."""

    scale: Tensor
    """A factor at the current step; 1 by default."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.zeros(width, width, device=device))
        self.gain = nn.Parameter(torch.tensor(GAIN, device=device))
        self.register_buffer("scale", torch.ones((), device=device), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """The changed weight (d, n) or bias (d,), in float32 also under autocast."""
        with torch.autocast(value.device.type, enabled=False):
            return value + (self.scale * self.gain * self.map) @ value


def add_adapters(encoder: nn.Module) -> None:
    """Add an adapter to the last linear layers of attention and MLP in every transformer block.

    CoCa's decoder is left out: the features do not depend on it.
    """
    linear = {name: part for name, part in encoder.named_modules() if isinstance(part, nn.Linear)}
    pairs = [
        [f"{name}.{site}" for site in sites]
        for name, _ in encoder.named_modules()
        for sites in _SITES
        if _DECODER not in name
    ]
    layers = [linear[name] for pair in pairs if linear.keys() >= {*pair} for name in pair]
    for layer in layers:
        adapter = Adapter(layer.out_features, layer.weight.device)
        for tensor in [name for name, _ in layer.named_parameters()]:
            # Safe, but the check would compute a weight, which has no values on the meta device.
            parametrize.register_parametrization(layer, tensor, adapter, unsafe=True)
    if not layers:
        problem = "one of the model's encoders has no transformer blocks, where adapters go"
        hint = "name a model with two transformers, or another method"
        raise ConfigError(problem, key="method.name", value="r_adapter", hint=hint)
