"""The frozen zero-shot model with a class head made of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.models.clip import create_clip, load_tokenizer, model_config
from trainers.models.config import ModelConfig
from trainers.models.image import ImageInput, image_input, pooled_features
from trainers.models.text import encode_tokens, ignored_tokens, shortened
from trainers.models.text_head import cached_heads, check_distinct_tokens, model_digest
from trainers.texts import Prompts, Vocabulary, random_texts


@dataclass(frozen=True, eq=False)
class ZeroShotModel:
    """A frozen CLIP and constants derived from it; D features, K classes."""

    clip: nn.Module
    head: Tensor
    """(K, D) float32, L2-normalised rows: the zero-shot classifier."""
    contexts: Tensor
    """(T, D) float32, L2-normalised rows: each template, averaged over the classes."""
    prompts: Prompts
    """Class names and templates of both."""
    logit_scale: float
    """s: the exponential of the pre-trained parameter, 100 for OpenAI's models.

    The bias of sigmoid models (SigLIP) is left out: it is the same for all classes and cancels in
    the softmax, in its gradient, and in every difference of scores.
    """
    tokenizer: Any
    trainable: frozenset[str]
    """Names of the parameters of `visual` that open_clip trains; others are constants, such as
    sine-cosine positions."""
    digest: str
    """A hash of all that its features depend on, besides the inputs."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.head.device

    @property
    def visual(self) -> nn.Module:
        """The image encoder with its projection."""
        return cast(nn.Module, self.clip.visual)

    @cached_property
    def image_input(self) -> ImageInput:
        """The pixels that the image encoder expects."""
        return image_input(self.clip)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens that random texts are made of."""
        return Vocabulary(self.tokenizer, ignored_tokens(self.clip))

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """L2-normalised float32 features (B, D) of normalised images (B, 3, H, W)."""
        return nn.functional.normalize(pooled_features(self.visual, images).float(), dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, K) of L2-normalised image features (B, D), which may be on the CPU."""
        return self.logit_scale * features.to(self.device) @ self.head.T

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens (N, n) of texts, on the CPU, with n as short as the model allows."""
        return shortened(self.clip, self.tokenizer(list(texts)))

    def random_tokens(self, count: int, length: int, *, seed: int, step: int) -> Tensor:
        """Tokens (count, n) of the random texts of a step, on the CPU, as short as `tokenize`."""
        texts = random_texts(self.vocabulary, count, length, seed=seed, step=step)
        return shortened(self.clip, texts)

    @cached_property
    def tokenize_once(self) -> Callable[[Sequence[str]], Tensor]:
        """`tokenize`, which keeps the tokens: for prompts, the same ones in each evaluation."""
        kept = cache(self.tokenize)
        return lambda texts: kept(tuple(texts))

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """L2-normalised float32 text features (M, D) of token sequences (M, n)."""
        return encode_tokens(self.clip, tokens)


def load_zero_shot(
    model: ModelConfig, prompts: Prompts, device: torch.device | str = "cpu"
) -> ZeroShotModel:
    """The zero-shot model with its head for these prompts."""
    clip, tokenizer = create_clip(model), load_tokenizer(model)
    visual = cast(nn.Module, clip.visual)
    trainable = frozenset(name for name, p in visual.named_parameters() if p.requires_grad)
    check_distinct_tokens(tokenizer, prompts)
    digest = model_digest(clip, model_config(model))
    clip = clip.requires_grad_(False).to(device)
    if sum(isinstance(module, nn.Conv2d) for module in visual.modules()) > 1:
        # A convolutional network is faster with channels last; a ViT has one convolution.
        visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = cached_heads(clip, tokenizer, prompts, digest, device)
    return ZeroShotModel(
        clip=clip,
        head=heads.classes.to(device),
        contexts=heads.contexts.to(device),
        prompts=prompts,
        logit_scale=cast(Tensor, clip.logit_scale).exp().item(),
        tokenizer=tokenizer,
        trainable=trainable,
        digest=digest,
    )
