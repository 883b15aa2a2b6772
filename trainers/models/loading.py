"""Loading a model: checks without weights, and the model itself in float32 on the CPU."""

from __future__ import annotations

import logging
from typing import Any, cast

import open_clip
import torch
from torch import nn

from trainers.errors import ConfigError, first_line
from trainers.models.architecture import TEXT_TOWERS, Architecture, architecture
from trainers.models.config import LOCAL_DIR, RANDOM, ModelConfig, is_path
from trainers.models.image import square_side
from trainers.models.text import text_facts
from trainers.models.tokenizers import check_tokenizer
from trainers.models.weights import check_pretrained, misfit

RANDOM_SEED = 0
"""Seed of `model.pretrained = random`: every worker and trial must start from the same model."""


def check_model(model: ModelConfig) -> None:
    """Raise a `ConfigError` for a model that cannot be loaded, or not as it was trained.

    That is an unknown name or tag, a missing, broken or unsafe file, a configuration that open_clip
    cannot build, weights trained with another activation, images that are not square, a package
    that is not installed, or a hub out of reach. No weights are loaded.
    """
    built = architecture(model)
    check_tokenizer(model, built)
    square_side(built.vision.get("image_size", 224))
    check_pretrained(model, built)
    text_facts(model)
    if model.name.startswith(LOCAL_DIR) or model.name.endswith(".json"):
        skeleton(model)  # open_clip checks the keys of a user's configuration


def load_clip(model: ModelConfig) -> nn.Module:
    """The model in evaluation mode, float32, on the CPU, all parameters frozen.

    Raises:
        ConfigError: what `check_model` refuses; weights that cannot be downloaded or do not fit.
    """
    return create_clip(model).requires_grad_(False)


def create_clip(model: ModelConfig) -> nn.Module:
    """As `load_clip`, but the parameters that open_clip would train require gradients."""
    check_model(model)
    built = architecture(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        if model.pretrained == RANDOM:
            clip = _built(model, built, force_preprocess_cfg=dict(built.preprocessing))
        else:
            clip = _pretrained(model, built)
    created: nn.Module = clip.eval()
    scale = cast(Any, created).logit_scale
    if scale.numel() != 1:
        problem = f"{scale.numel()} logit scales are not supported"
        raise ConfigError(problem, key="model.name", value=model.name)
    return created


def skeleton(model: ModelConfig) -> nn.Module:
    """The model without its weights, to look up its parts; takes a fraction of a second.

    Its parameters have names and shapes and, on PyTorch's meta device, no memory.

    Raises:
        ConfigError: open_clip cannot build it.
    """
    built, silenced = architecture(model), logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of missing weights
    try:
        with torch.device("meta"):
            return _built(model, built, device="meta", load_weights=False)
    finally:
        logging.disable(silenced)


def _built(model: ModelConfig, built: Architecture, **options: Any) -> nn.Module:
    _refuse_foreign_tower(model, built)
    try:
        created: nn.Module = open_clip.create_model(built.name, pretrained_text=False, **options)
        return created
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        problem = f"it cannot be built: {first_line(error)}"
        raise ConfigError(problem, key="model.name", value=model.name) from None


def _refuse_foreign_tower(model: ModelConfig, built: Architecture) -> None:
    """Raise a `ConfigError` if the text tower is Python code of its folder or repository.

    open_clip loads its configuration without a word on foreign code; transformers 5 then asks on
    the terminal, and runs the code after a `y`.
    """
    tower = built.text.get("hf_model_name")
    if not tower:
        return
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(tower, trust_remote_code=False).model_type
        problem = f"a text tower of type {kind!r} is not one of {', '.join(TEXT_TOWERS)}"
    except (OSError, ValueError, KeyError) as error:
        kind, problem = None, f"its text tower {tower!r} cannot be used: {first_line(error)}"
        if "trust_remote_code" in str(error):
            problem = f"its text tower {tower!r} is Python code, which is not run"
    if kind not in TEXT_TOWERS:
        raise ConfigError(problem, key="model.name", value=model.name)


def _pretrained(model: ModelConfig, built: Architecture) -> nn.Module:
    _refuse_foreign_tower(model, built)
    tag = model.pretrained
    forced = dict(built.preprocessing) if tag is not None and is_path(tag) else {}
    try:
        return open_clip.create_model(
            built.name,
            pretrained=tag,
            pretrained_text=False,
            weights_only=True,
            require_pretrained=True,
            force_preprocess_cfg=forced,
        )
    except Exception as error:  # PyTorch, safetensors, pickle and open_clip all raise their own
        raise ConfigError(
            f"the weights cannot be loaded into {built.name!r}: {misfit(error)}",
            key="model.pretrained" if tag else "model.name",
            value=tag or model.name,
        ) from None
