"""The text side of a model: facts about its texts that need no weights, and its text features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.models.architecture import architecture
from trainers.models.config import ModelConfig
from trainers.models.tokenizers import Vocabulary, context_length, load_tokenizer, vocabulary


@dataclass(frozen=True)
class TextFacts:
    """Facts about a model's texts that need no weights."""

    model: str
    """`model.name`, for messages."""
    context_length: int
    """Largest number of tokens of a text, start and end included."""
    vocabulary: Vocabulary | None = None
    """Tokens of random texts. None if the tokenizer adds no start and end tokens, as SigLIP's, or
    is named by a model of the Hugging Face hub."""
    pad_token: int = 0
    """The token that fills a sequence to the context length."""

    @property
    def has_random_texts(self) -> bool:
        """Whether random texts can be made."""
        return self.vocabulary is not None


def text_facts(model: ModelConfig) -> TextFacts:
    """Read from the model's configuration and tokenizer alone.

    Raises:
        ConfigError: an unknown model, or a text tower that does not fit its tokenizer.
    """
    built = architecture(model)
    text, length, words = built.text, context_length(built), vocabulary(model, built)
    if words is None:
        return TextFacts(model.name, length)
    tokenizer = load_tokenizer(model)
    room = int(text.get("vocab_size", open_clip.CLIPTextCfg().vocab_size))
    if room < tokenizer.vocab_size and not text.get("hf_model_name"):
        raise ConfigError(
            f"text_cfg.vocab_size = {room} is smaller than the {tokenizer.vocab_size} tokens of "
            "CLIP's tokenizer, which this model uses",
            key="model.name",
            value=model.name,
            hint="name the model's own: model.tokenizer = its merges or tokenizer.json",
        )
    pool = text.get("pool_type", "argmax")
    if pool == "eos" and (named := text.get("eos_id", open_clip.CLIPTextCfg().eos_id)) != words.end:
        problem = f"text_cfg.eos_id = {named}, but the end token of its tokenizer is {words.end}"
        raise ConfigError(problem, key="model.name", value=model.name)
    left_out = set()
    if text.get("embed_cls") or text.get("use_pad_mask"):  # the tower ignores such tokens (CoCa)
        left_out = {int(text.get("pad_id", 0))}
    if pool == "argmax":  # the feature is read at the largest id, which must be the end token
        left_out |= {index for index in words.ordinary if index > words.end}
    if left_out:
        rest = tuple(index for index in words.ordinary if index not in left_out)
        words = Vocabulary(words.start, words.end, rest)
    return TextFacts(model.name, length, words, getattr(tokenizer, "pad_token", 0))


def encode_tokens(clip: nn.Module, tokens: Tensor, pad_token: int = 0) -> Tensor:
    """L2-normalised features (M, D), float32, of texts (M, n) with n <= the context length.

    The same as open_clip's `encode_text` on sequences padded to the full context. If
    attention is causal and the feature is read at the largest id, the end token, then tokens behind
    it have no influence, and the padding, which is most of the cost, is left out.
    """
    tower = cast(Any, getattr(clip, "text", clip))
    n = tokens.shape[1]
    if not ends_at_the_end_token(clip):
        if isinstance(tower, open_clip.CLIP | TextTransformer):
            tokens = nn.functional.pad(tokens, (0, tower.context_length - n), value=pad_token)
        x = cast(Any, clip).encode_text(tokens, normalize=False)
        return nn.functional.normalize(x.float(), dim=-1)
    x = tower.token_embedding(tokens) + tower.positional_embedding[:n]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:n, :n])
    x = tower.ln_final(x)
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    projection = tower.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return nn.functional.normalize(x.float(), dim=-1)


def ends_at_the_end_token(clip: nn.Module) -> bool:
    """Whether a text's feature depends on no token behind its end token."""
    tower = cast(Any, getattr(clip, "text", clip))
    if not isinstance(tower, open_clip.CLIP | TextTransformer):
        return False  # a tower of Hugging Face
    pool = tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type
    causal = tower.attn_mask is not None
    appends_class_token = getattr(tower, "cls_emb", None) is not None
    return pool == "argmax" and causal and not appends_class_token
