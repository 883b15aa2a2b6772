"""Activation checkpointing: trading a second forward pass for the memory of the first.

Within a block of an encoder nothing is kept for the backward pass but its input; the rest is
computed again when it is asked for (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from trainers.errors import ConfigError
from trainers.models.architecture import architecture
from trainers.models.config import ModelConfig

BLOCK_LISTS = ("resblocks", "blocks", "layer", "layers", "block")
"""What open_clip, timm and Hugging Face call the lists of an encoder's blocks."""


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """An encoder's blocks, of transformers and of timm's convolutional nets; none within another.

    Where there are lists in lists, as stages are, they are those of the innermost.
    """
    lists = [m for name, m in encoder.named_modules() if name.rpartition(".")[2] in BLOCK_LISTS]
    found = {block: None for of_list in lists for block in of_list.children()}
    return [block for block in found if found.keys().isdisjoint(_within(block))]


def _within(module: nn.Module) -> Iterator[nn.Module]:
    return (inner for inner in module.modules() if inner is not module)


def check_activation_checkpointing(model: ModelConfig) -> None:
    """Raise a `ConfigError` for image towers that are not made of blocks: open_clip's ResNets."""
    if isinstance(architecture(model).vision.get("layers"), list | tuple):
        raise ConfigError(
            f"activation_checkpointing = true: the image tower of model.name = {model.name!r} is "
            "a ResNet, which is not made of blocks; write activation_checkpointing = false"
        )


def keep_no_activations(encoder: nn.Module) -> None:
    """Make an encoder compute what is within its blocks again in the backward pass.

    The second pass sees the weights of the first, even where these stood in for the encoder's own
    for the length of a call (`torch.func.functional_call`); open_clip's own checkpointing does not.

    Raises:
        ConfigError: it has no blocks.
    """
    found = blocks(encoder)
    if not found:
        raise ConfigError(
            f"activation_checkpointing = true: no blocks are known of {type(encoder).__name__}; "
            "write activation_checkpointing = false"
        )
    for block in found:
        vars(block)["forward"] = _Recomputed(block)


class _Recomputed:
    """In place of a block's `forward`."""

    def __init__(self, block: nn.Module) -> None:
        self._plain = _Plain(block)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weights = dict(self._plain.named_parameters())
        return checkpoint(self._with, weights, args, kwargs, use_reentrant=False)

    def _with(self, weights: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        return functional_call(self._plain, weights, args, kwargs)


class _Plain(nn.Module):
    """A block as its class has it, whatever `forward` the block itself was given."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.block).forward(self.block, *args, **kwargs)
