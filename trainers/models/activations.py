"""Activation checkpointing: a second forward pass in exchange for memory.

Only the input of an encoder's block is kept for the backward pass, which computes the rest again
(Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174).
"""

from __future__ import annotations

from torch import nn

from trainers.errors import ConfigError
from trainers.models.clip import model_config
from trainers.models.config import ModelConfig


def check_activation_checkpointing(model: ModelConfig) -> None:
    """Raise a `ConfigError` for open_clip's ResNets, which are not made of blocks."""
    if isinstance(model_config(model)["vision_cfg"].get("layers"), list | tuple):
        raise _impossible(f"the image tower of model.name = {model.name!r} is a ResNet")


def keep_no_activations(visual: nn.Module, *others: nn.Module) -> None:
    """Make encoders compute the activations of their blocks again in the backward pass.

    Text towers of Hugging Face keep theirs: they recompute only in training mode, with dropout.

    Raises:
        ConfigError: the image encoder cannot.
    """
    for encoder in (visual, *others):
        # What `set_grad_checkpointing` sets, which the copy of a text tower may not have.
        able = [module for module in encoder.modules() if hasattr(module, "grad_checkpointing")]
        if encoder is visual and not able:
            raise _impossible(f"{type(encoder).__name__} cannot compute its activations again")
        for module in able:
            module.grad_checkpointing = True  # type: ignore[assignment]


def _impossible(problem: str) -> ConfigError:
    hint = "write activation_checkpointing = false"
    return ConfigError(problem, key="activation_checkpointing", value=True, hint=hint)
