"""Loading a zero-shot model: any that open_clip knows, and the embedded `tiny-clip`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from trainers import tiny_clip
from trainers.errors import ConfigError, did_you_mean

TINY_CLIP = "tiny-clip"


class ModelConfig(BaseModel):
    """Which zero-shot model is fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = TINY_CLIP
    """`tiny-clip` (embedded), or any name that open_clip knows, such as `ViT-B-16-quickgelu`."""
    pretrained: str | None = None
    """open_clip's pre-trained tag or a checkpoint's path; must be absent for `tiny-clip`."""


@dataclass(frozen=True)
class ImageInput:
    """What an image encoder expects of its pixels."""

    size: int
    """Side of the square picture."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def check_model(config: ModelConfig) -> None:
    """Raise a `ConfigError` for a model that open_clip does not know or has no such weights for."""
    if config.name == TINY_CLIP:
        if config.pretrained is not None:
            raise ConfigError(
                f"model.pretrained = {config.pretrained!r}: {TINY_CLIP!r} brings its own weights"
            )
        return
    if config.name not in open_clip.list_models():
        known = [TINY_CLIP, *open_clip.list_models()]
        hint = did_you_mean(config.name, known)
        short = hint if "did you mean" in hint else " (see open_clip.list_models())"
        raise ConfigError(f"model.name = {config.name!r} is not known{short}")
    tag = config.pretrained
    if tag is not None and not Path(tag).is_file():
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        if tag not in tags:
            raise ConfigError(
                f"model.pretrained = {tag!r}: no such file, and no tag of {config.name}"
                f"{did_you_mean(tag, tags)}"
            )


def context_length(config: ModelConfig) -> int:
    """Tokens that a text may have, start and end included, without loading any weights."""
    cfg = tiny_clip.model_config() if config.name == TINY_CLIP else _known(config.name)
    return int(cfg["text_cfg"].get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))


def _known(name: str) -> dict[str, Any]:
    return cast(dict[str, Any], open_clip.get_model_config(name))


def load_clip(config: ModelConfig) -> nn.Module:
    """The model in evaluation mode, float32, on the CPU, all parameters frozen."""
    check_model(config)
    if config.name == TINY_CLIP:
        model = open_clip.create_model(f"local-dir:{tiny_clip.FOLDER}")
    else:
        model = open_clip.create_model(config.name, pretrained=config.pretrained)
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of the model, with `sot_token_id` and `eot_token_id`.

    Raises:
        ConfigError: the model's tokenizer has no start token, and so no random texts.
    """
    if config.name == TINY_CLIP:
        return tiny_clip.tokenizer()
    tokenizer = open_clip.get_tokenizer(config.name)
    if not hasattr(tokenizer, "sot_token_id"):
        raise ConfigError(
            f"model.name = {config.name!r}: its tokenizer is not CLIP's; random texts are "
            "defined by CLIP's start and end tokens"
        )
    return tokenizer


def image_input(clip: nn.Module) -> ImageInput:
    """The size and normalisation that open_clip recorded on the model."""
    visual = cast(Any, clip).visual
    preprocess = visual.preprocess_cfg
    size = preprocess["size"]
    side = int(size[0] if isinstance(size, tuple | list) else size)
    return ImageInput(side, tuple(preprocess["mean"]), tuple(preprocess["std"]))


def encode_tokens(clip: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """L2-normalised text features (M, D) of token sequences (M, n) with n <= the context length.

    The same as open_clip's `encode_text` on sequences padded to the full context, at n / context
    of its cost: attention is causal and the feature is read at the end token, so nothing behind
    it matters. The end token must be the largest id of its sequence, as CLIP's is.
    """
    text = cast(Any, getattr(clip, "text", clip))
    n = tokens.shape[1]
    x = text.token_embedding(tokens) + text.positional_embedding[:n]
    x = text.transformer(x, attn_mask=text.attn_mask[:n, :n])
    x = text.ln_final(x)
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    projection = text.text_projection
    x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return nn.functional.normalize(x, dim=-1)
