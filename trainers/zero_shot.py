"""The zero-shot model as fine-tuning sees it: frozen, with a class head made of prompts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainers.models import (
    ImageInput,
    ModelConfig,
    encode_tokens,
    image_input,
    load_clip,
    load_tokenizer,
)


@dataclass(frozen=True)
class ZeroShotModel:
    """A frozen CLIP and what is derived from it once; D features, K classes."""

    clip: nn.Module
    head: Tensor
    """(K, D) float32, L2-normalised rows: the zero-shot classifier."""
    logit_scale: float
    """s: the exponential of the pre-trained parameter, 100 for OpenAI's models."""
    image_input: ImageInput
    start_token: int
    """Id of the start token; the ids of ordinary tokens are 0 .. start_token - 1."""
    context_length: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.head.device

    @property
    def visual(self) -> nn.Module:
        """The image encoder with its projection; features are not yet normalised."""
        return cast(nn.Module, self.clip.visual)

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """L2-normalised float32 text features (M, D) of token sequences (M, n)."""
        return encode_tokens(self.clip, tokens).float()


def load_zero_shot(
    config: ModelConfig, class_names: Sequence[str], device: torch.device | str = "cpu"
) -> ZeroShotModel:
    """The zero-shot model with its head for these classes.

    Raises:
        ConfigError: an unknown model, or one without CLIP's start and end tokens.
    """
    clip = load_clip(config)
    tokenizer = load_tokenizer(config)
    head = _cached_head(clip, tokenizer, class_names)
    return ZeroShotModel(
        clip=clip.to(device),
        head=head.to(device),
        logit_scale=float(cast(Tensor, clip.logit_scale).exp()),
        image_input=image_input(clip),
        start_token=int(tokenizer.sot_token_id),
        context_length=int(tokenizer.context_length),
    )


@torch.no_grad()
def zero_shot_head(clip: nn.Module, tokenizer: Any, class_names: Sequence[str]) -> Tensor:
    """The (K, D) head: the mean over OpenAI's 80 ImageNet templates of normalised text features.

    Each class embedding is L2-normalised again. Underscores and hyphens in names are read as
    spaces.
    """
    rows = []
    for name in class_names:
        spoken = name.replace("_", " ").replace("-", " ")
        tokens = tokenizer([template(spoken) for template in OPENAI_IMAGENET_TEMPLATES])
        longest = int(tokens.argmax(dim=-1).max()) + 1  # nothing behind the end token matters
        rows.append(encode_tokens(clip, tokens[:, :longest]).float().mean(dim=0))
    return nn.functional.normalize(torch.stack(rows), dim=-1)


def _cached_head(clip: nn.Module, tokenizer: Any, class_names: Sequence[str]) -> Tensor:
    """`zero_shot_head`, kept on disk under a hash of all that goes into it."""
    path = _head_path(clip, class_names)
    if path.exists():
        return load_file(path)["head"]
    head = zero_shot_head(clip, tokenizer, class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({"head": head.contiguous()}, unfinished)
    unfinished.replace(path)  # trials that start together must never read half a file
    return head


def _head_path(clip: nn.Module, class_names: Sequence[str]) -> Path:
    digest = hashlib.sha256()
    text = cast(nn.Module, getattr(clip, "text", clip))
    for name, parameter in sorted(text.named_parameters()):
        if not name.startswith("visual."):
            digest.update(name.encode() + parameter.detach().cpu().float().numpy().tobytes())
    for template in OPENAI_IMAGENET_TEMPLATES:
        digest.update(template("").encode())
    digest.update("\n".join(class_names).encode())
    return platformdirs.user_cache_path("lipsum-tune") / "heads" / f"{digest.hexdigest()}.st"
