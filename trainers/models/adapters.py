"""Residual linear adapters, merged into the weights that they follow.

R-Adapter (Kim et al., ECCV 2024, arXiv 2408.05749) puts ``h(x) = x + g A x`` after the attention
and after the MLP of every transformer block; the gain g is in the authors' code, not in the paper.
Both end in a linear layer ``y = W x + b``, and a linear map of a linear layer is linear::

    h(y) = (I + g A) W x + (I + g A) b

So the adapter is trained as a change of `W` and `b`, and merging it is the same expression: no
module is added, and inference needs no extra step. For a batch with more tokens than the block is
wide, this is also faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.errors import ConfigError

_SITES = (("attn.out_proj", "mlp.c_proj"), ("attn.proj", "mlp.fc2"))
"""Last layers of a block's attention and MLP: in open_clip's transformers, and in timm's."""
_DECODER = "text_decoder."

GAIN = 0.1
"""g before the first step, as in the authors' code."""


class Adapters(nn.Module):
    """The adapters of one encoder. They start at 0, so the encoder is unchanged at first.

    Raises:
        ConfigError: it has no transformer blocks of open_clip or timm.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.scale: Tensor | None = None
        """(S,), a factor for each adapter at the current step; None is 1."""
        self.sites = adapter_sites(encoder)
        if not self.sites:
            raise ConfigError(
                "adapters go after the attention and the MLP of transformer blocks, and the model "
                "has none in one of its encoders",
                key="method.name",
                value="r_adapter",
                hint="name a model with two transformers, or another method",
            )
        layers = (encoder.get_submodule(site) for site in self.sites)
        self.maps = nn.ParameterList(
            torch.zeros(layer.out_features, layer.out_features, device=layer.weight.device)
            for layer in layers
            if isinstance(layer, nn.Linear)
        )
        """A of each site, (d, d); 0 before the first step."""
        self.gains = nn.Parameter(torch.full((len(self.maps),), GAIN, device=self.maps[0].device))
        """g of each site, (S,)."""

    def __len__(self) -> int:
        return len(self.sites)

    def merged(self, encoder: nn.Module) -> dict[str, Tensor]:
        """The weights and biases that the adapters change, by name: ``(I + scale g A) W``."""
        found: dict[str, Tensor] = {}
        factors = self.gains if self.scale is None else self.scale * self.gains
        with torch.autocast(self.gains.device.type, enabled=False):
            for site, change, factor in zip(self.sites, self.maps, factors, strict=True):
                layer, a = encoder.get_submodule(site), factor * change
                for name, value in layer.named_parameters():  # weight (d, n), bias (d,)
                    found[f"{site}.{name}"] = value + a @ value
        return found


def adapter_sites(encoder: nn.Module) -> list[str]:
    """The names of the last linear layers of attention and MLP in every transformer block.

    CoCa's decoder is left out: the features do not depend on it.
    """
    names = {name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    found = []
    for name, _ in encoder.named_modules():
        if _DECODER in name:
            continue
        for attention, mlp in _SITES:
            pair = [f"{name}.{attention}", f"{name}.{mlp}"]
            if names.issuperset(pair):
                found += pair
    return found
