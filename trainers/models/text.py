"""The text side, asked of the model: its tokens from the configuration, its features by its tower.

Random texts are made of CLIP's start and end tokens, so they exist only with CLIP's tokenizer.
Models with another one (SigLIP, CLIPA, multilingual text towers) have a zero-shot head and no
random texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.models.architecture import Architecture, architecture
from trainers.models.config import ModelConfig
from trainers.models.tokenizer import TokenizerKind, load_tokenizer, tokenizer_kind


@dataclass(frozen=True)
class TextFacts:
    """What is known of a model's texts without its weights."""

    model: str
    """`model.name`, for messages."""
    tokenizer: TokenizerKind
    context_length: int
    """Tokens that a text may have, start and end included."""
    start_token: int | None = None
    """Ids of ordinary tokens are 0 .. start_token - 1, the end token is the next; None where there
    are no such tokens."""
    masked_token: int | None = None
    """An ordinary token that the text tower takes for padding (CoCa's 0)."""

    @property
    def has_random_texts(self) -> bool:
        """Whether the tokenizer is CLIP's."""
        return self.start_token is not None


def text_facts(model: ModelConfig) -> TextFacts:
    """Read from the model's configuration and tokenizer alone.

    Raises:
        ConfigError: an unknown model, or a text tower whose vocabulary is not its tokenizer's.
    """
    built = architecture(model)
    kind = tokenizer_kind(model, built)
    length = int(built.text.get("context_length") or open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    if kind != "clip":
        return TextFacts(model.name, kind, length)
    tokenizer = load_tokenizer(model)
    _check_vocabulary(model, built, tokenizer.vocab_size)
    padding_is_masked = built.text.get("embed_cls") or built.text.get("use_pad_mask")
    return TextFacts(
        model=model.name,
        tokenizer=kind,
        context_length=length,
        start_token=int(tokenizer.sot_token_id),
        masked_token=int(built.text.get("pad_id", 0)) if padding_is_masked else None,
    )


def _check_vocabulary(model: ModelConfig, built: Architecture, tokens: int) -> None:
    room = int(built.text.get("vocab_size", open_clip.CLIPTextCfg().vocab_size))
    if room < tokens and not built.text.get("hf_model_name"):
        raise ConfigError(
            f"model.name = {model.name!r}: text_cfg.vocab_size = {room}: CLIP's tokenizer, which "
            f"it would be given, has {tokens} tokens"
        )


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """L2-normalised text features (M, D) of token sequences (M, n) with n <= the context length.

    The same as open_clip's `encode_text` on sequences padded with 0 to the full context. Where
    attention is causal and the feature is read at the largest id, the end token, nothing behind
    that token matters, and the padding, most of the cost, is saved.
    """
    tower = cast(Any, getattr(clip, "text", clip))
    n = tokens.shape[1]
    if not ends_at_the_end_token(clip):
        if isinstance(tower, open_clip.CLIP | TextTransformer):
            tokens = nn.functional.pad(tokens, (0, tower.context_length - n))
        return cast(Tensor, cast(Any, clip).encode_text(tokens, normalize=True))
    x = tower.token_embedding(tokens) + tower.positional_embedding[:n]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:n, :n])
    x = tower.ln_final(x)
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    projection = tower.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return nn.functional.normalize(x, dim=-1)


def ends_at_the_end_token(clip: nn.Module) -> bool:
    """Whether a text's feature depends on nothing behind its end token."""
    tower = cast(Any, getattr(clip, "text", clip))
    if not isinstance(tower, open_clip.CLIP | TextTransformer):
        return False  # of Hugging Face
    pool = tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type
    causal = tower.attn_mask is not None
    appends_class_token = getattr(tower, "cls_emb", None) is not None
    return pool == "argmax" and causal and not appends_class_token
