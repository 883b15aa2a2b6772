"""Activation checkpointing: a second forward pass in exchange for memory.

Only the input of an encoder's block is kept for the backward pass, which computes the rest again
(Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174).
"""

from __future__ import annotations

from torch import nn

from trainers.errors import ConfigError


def keep_no_activations(visual: nn.Module, *others: nn.Module) -> None:
    """Make encoders compute the activations of their blocks again in the backward pass.

    Text towers of Hugging Face keep theirs: they recompute only in training mode, with dropout.

    Raises:
        ConfigError: the image encoder cannot, as open_clip's ResNets, which have no blocks.
    """
    for encoder in (visual, *others):
        # What `set_grad_checkpointing` sets, which the copy of a text tower may not have.
        able = [module for module in encoder.modules() if hasattr(module, "grad_checkpointing")]
        if encoder is visual and not able:
            problem = f"the image encoder, {type(encoder).__name__}, cannot compute them again"
            hint = "write activation_checkpointing = false"
            raise ConfigError(problem, key="activation_checkpointing", value=True, hint=hint)
        for module in able:
            module.grad_checkpointing = True  # type: ignore[assignment]
