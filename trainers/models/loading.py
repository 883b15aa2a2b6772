"""Making the model: its architecture with its weights, in float32 on the CPU."""

from __future__ import annotations

import logging
from typing import Any, cast

import open_clip
import torch
from torch import nn

from trainers.errors import ConfigError, first_line
from trainers.models.architecture import Architecture, architecture
from trainers.models.check import check_model
from trainers.models.config import RANDOM, ModelConfig, is_path
from trainers.models.hub import fetch_weights
from trainers.models.weights import misfit

RANDOM_SEED = 0
"""Of `model.pretrained = random`: every worker and every trial must start from the same model."""


def load_clip(model: ModelConfig) -> nn.Module:
    """The model in evaluation mode, float32, on the CPU, all parameters frozen.

    Raises:
        ConfigError: what `check_model` refuses; weights that cannot be fetched or do not fit.
    """
    return create_clip(model).requires_grad_(False)


def create_clip(model: ModelConfig) -> nn.Module:
    """As `load_clip`, but parameters require gradients where open_clip would train them."""
    check_model(model)
    built = architecture(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        clip = _random(model, built) if model.pretrained == RANDOM else _pretrained(model, built)
    created: nn.Module = clip.eval()
    scale = cast(Any, created).logit_scale
    if scale.numel() != 1:
        raise ConfigError(f"model.name = {model.name!r}: it has {scale.numel()} logit scales")
    return created


def skeleton(model: ModelConfig) -> nn.Module:
    """The model without its weights, to be asked what parts it has; a fraction of a second.

    Its parameters have names and shapes and, on PyTorch's meta device, no memory.

    Raises:
        ConfigError: it cannot be built.
    """
    built, silenced = architecture(model), logging.root.manager.disable
    logging.disable(logging.WARNING)  # of there being no weights
    try:
        with torch.device("meta"):
            return _built(model, built, device="meta", load_weights=False)
    finally:
        logging.disable(silenced)


def _random(model: ModelConfig, built: Architecture) -> nn.Module:
    return _built(model, built, force_preprocess_cfg=dict(built.preprocessing))


def _built(model: ModelConfig, built: Architecture, **options: Any) -> nn.Module:
    try:
        created: nn.Module = open_clip.create_model(built.name, pretrained_text=False, **options)
        return created
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.name = {model.name!r}: it cannot be built: {first_line(error)}"
        ) from None


def _pretrained(model: ModelConfig, built: Architecture) -> nn.Module:
    tag = model.pretrained
    source = f"model.pretrained = {tag!r}" if tag else f"model.name = {model.name!r}"
    forced: dict[str, Any] = {}
    if tag is not None and is_path(tag):
        forced = dict(built.preprocessing)
    elif tag is not None:
        fetch_weights(built.name, tag)
    try:
        return open_clip.create_model(
            built.name,
            pretrained=tag,
            weights_only=True,
            require_pretrained=True,
            force_preprocess_cfg=forced,
        )
    except (
        AssertionError,
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"{source}: the weights do not fit {built.name!r}: {misfit(error)}"
        ) from None
