"""Activation checkpointing: a second forward pass in exchange for memory.

Only the input of an encoder's block is kept for the backward pass, which computes the rest again
(Chen et al., "Training Deep Nets with Sublinear Memory Cost",
arXiv 1604.06174).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from trainers.errors import ConfigError
from trainers.models.clip import model_config
from trainers.models.config import ModelConfig

BLOCK_LISTS = ("resblocks", "blocks", "layer", "layers", "block")
"""Names of the lists of an encoder's blocks in open_clip, timm and Hugging Face."""


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of an encoder (a transformer or one of timm's convolutional nets).

    Of nested lists, such as stages, those of the innermost.
    """
    lists = [m for name, m in encoder.named_modules() if name.rpartition(".")[2] in BLOCK_LISTS]
    found = {block: None for of_list in lists for block in of_list.children()}
    return [
        block
        for block in found
        if not any(inner in found for inner in block.modules() if inner is not block)
    ]


def check_activation_checkpointing(model: ModelConfig) -> None:
    """Raise a `ConfigError` for open_clip's ResNets, which are not made of blocks."""
    if isinstance(model_config(model)["vision_cfg"].get("layers"), list | tuple):
        tower = f"the image tower of model.name = {model.name!r}"
        raise _impossible(f"{tower} is a ResNet, which has no blocks")


def keep_no_activations(encoder: nn.Module) -> None:
    """Make the blocks of an encoder compute their activations again in the backward pass.

    The second pass uses the weights of the first, even if they replaced the encoder's own for one
    call (`torch.func.functional_call`); open_clip's own checkpointing would use the encoder's own.

    Raises:
        ConfigError: it has no blocks.
    """
    found = blocks(encoder)
    if not found:
        raise _impossible(f"no blocks are known of {type(encoder).__name__}")
    for block in found:
        vars(block)["forward"] = _Recomputed(block)


def _impossible(problem: str) -> ConfigError:
    hint = "write activation_checkpointing = false"
    return ConfigError(problem, key="activation_checkpointing", value=True, hint=hint)


class _Recomputed:
    """Replaces the `forward` of a block."""

    def __init__(self, block: nn.Module) -> None:
        self._plain = _Plain(block)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weights = dict(self._plain.named_parameters())
        return checkpoint(
            functional_call,
            self._plain,
            weights,
            args,
            kwargs,
            use_reentrant=False,
            # Encoders draw no random numbers (`Student`), and saving the state of the generator
            # for every weight of a block would make a GPU wait.
            preserve_rng_state=False,
        )


class _Plain(nn.Module):
    """A block with the `forward` of its class, not the one set on the instance."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.block).forward(self.block, *args, **kwargs)
