"""The text side of a model: its tokenizer, its facts without weights, and its features.

Random texts are made of CLIP's start and end tokens, so they exist only with CLIP's tokenizer.
Models with another one (SigLIP, CLIPA, multilingual text towers) have a zero-shot head and no
random texts.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from trainers.errors import ConfigError, first_line
from trainers.models import tiny_clip
from trainers.models.architecture import Architecture, architecture
from trainers.models.config import HUB, LOCAL_DIR, TINY_CLIP, ModelConfig
from trainers.models.hub import check_repository

TokenizerKind = Literal["clip", "huggingface", "siglip"]


@dataclass(frozen=True)
class TextFacts:
    """Facts about a model's texts that need no weights."""

    model: str
    """`model.name`, for messages."""
    tokenizer: TokenizerKind
    context_length: int
    """Largest number of tokens of a text, start and end included."""
    start_token: int | None = None
    """Ids of ordinary tokens are 0 .. start_token - 1, the end token is the next; None if the
    tokenizer has no such tokens."""
    masked_token: int | None = None
    """An ordinary token that the text tower treats as padding (CoCa's 0)."""

    @property
    def has_random_texts(self) -> bool:
        """Whether the tokenizer is CLIP's."""
        return self.start_token is not None


def text_facts(model: ModelConfig) -> TextFacts:
    """Read from the model's configuration and tokenizer alone.

    Raises:
        ConfigError: an unknown model, or a text tower with a smaller vocabulary than its tokenizer.
    """
    built = architecture(model)
    kind = tokenizer_kind(model, built)
    length = int(built.text.get("context_length") or open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    if kind != "clip":
        return TextFacts(model.name, kind, length)
    tokenizer = load_tokenizer(model)
    room = int(built.text.get("vocab_size", open_clip.CLIPTextCfg().vocab_size))
    if room < tokenizer.vocab_size and not built.text.get("hf_model_name"):
        raise ConfigError(
            f"text_cfg.vocab_size = {room} is smaller than the {tokenizer.vocab_size} tokens of "
            "CLIP's tokenizer, which this model uses",
            key="model.name",
            value=model.name,
        )
    padding_is_masked = built.text.get("embed_cls") or built.text.get("use_pad_mask")
    return TextFacts(
        model=model.name,
        tokenizer=kind,
        context_length=length,
        start_token=int(tokenizer.sot_token_id),
        masked_token=int(built.text.get("pad_id", 0)) if padding_is_masked else None,
    )


def tokenizer_kind(model: ModelConfig, built: Architecture) -> TokenizerKind:
    """Which tokenizer open_clip's `get_tokenizer` chooses, by its rules."""
    if built.text.get("hf_tokenizer_name"):
        return "huggingface"
    by_name = not model.name.startswith((LOCAL_DIR, HUB))
    return "siglip" if by_name and "siglip" in built.name.lower() else "clip"


def load_tokenizer(model: ModelConfig) -> Any:
    """Function from texts to padded tokens (N, context length); no weights are loaded.

    Raises:
        ConfigError: a package it needs is not installed, or the hub is out of reach.
    """
    if model.name == TINY_CLIP:
        return tiny_clip.tokenizer()
    built = architecture(model)
    check_tokenizer(model, built)
    try:
        return _tokenizer(built.name)
    except (ImportError, OSError, ValueError) as error:
        problem = f"its tokenizer cannot be loaded: {first_line(error)}"
        raise ConfigError(problem, key="model.name", value=model.name) from None


@cache
def _tokenizer(name: str) -> Any:
    return open_clip.get_tokenizer(name)


def check_tokenizer(model: ModelConfig, built: Architecture) -> None:
    """Raise a `ConfigError` if tokenizer or text tower need a package or a file that is missing.

    Nothing is downloaded.
    """
    source, tower = f"model.name = {model.name!r}", built.text.get("hf_model_name")
    if tokenizer_kind(model, built) == "clip" and not tower:
        return
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "its tokenizer or text tower comes from Hugging Face",
            key="model.name",
            value=model.name,
            hint="pip install 'lipsum-tune[huggingface]'",
        )
    tokenizer = built.text.get("hf_tokenizer_name")
    if tokenizer and not model.name.startswith(LOCAL_DIR) and not Path(tokenizer).is_dir():
        check_repository(tokenizer, ("tokenizer_config.json", "tokenizer.json"), source)
    if tower and not Path(tower).is_dir():
        check_repository(tower, ("config.json",), source)


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """L2-normalised text features (M, D) of token sequences (M, n) with n <= the context length.

    The same as open_clip's `encode_text` on sequences padded with 0 to the full context. If
    attention is causal and the feature is read at the largest id, the end token, then tokens behind
    it have no influence, and the padding, which is most of the cost, is left out.
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
    """Whether a text's feature depends on no token behind its end token."""
    tower = cast(Any, getattr(clip, "text", clip))
    if not isinstance(tower, open_clip.CLIP | TextTransformer):
        return False  # a tower of Hugging Face
    pool = tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type
    causal = tower.attn_mask is not None
    appends_class_token = getattr(tower, "cls_emb", None) is not None
    return pool == "argmax" and causal and not appends_class_token
