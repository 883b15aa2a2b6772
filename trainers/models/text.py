"""The text tower of a model: features of tokens, as short as the tower allows."""

from __future__ import annotations

from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """L2-normalised float32 features (M, D) of texts (M, n).

    `tokens` are as wide as the context, or cut by `shortened`.
    """
    if ends_at_the_end_token(clip):
        tower, n = cast(Any, getattr(clip, "text", clip)), tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:n]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:n, :n])
        x = tower.ln_final(x)
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    else:
        x = cast(Any, clip).encode_text(tokens, normalize=False)
    return nn.functional.normalize(x.float(), dim=-1)


def shortened(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens (M, n) without the padding, which is most of the cost, if it has no influence."""
    if not ends_at_the_end_token(clip):
        return tokens
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]


def ends_at_the_end_token(clip: nn.Module) -> bool:
    """Whether a text's feature depends on no token behind the largest one, its end token."""
    tower = cast(Any, getattr(clip, "text", clip))
    if not isinstance(tower, open_clip.CLIP | TextTransformer):
        return False  # a tower of Hugging Face
    pool = tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type
    appends_class_token = getattr(tower, "cls_emb", None) is not None
    return pool == "argmax" and tower.attn_mask is not None and not appends_class_token


def embedding(clip: nn.Module) -> nn.Embedding:
    """The text tower's table of token embeddings."""
    tower = cast(Any, getattr(clip, "text", clip))
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    return tower.transformer.get_input_embeddings()


def ignored_tokens(clip: nn.Module) -> set[int]:
    """Tokens that the tower masks wherever they stand: CoCa's padding."""
    tower = cast(Any, getattr(clip, "text", clip))
    masks = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    return {int(tower.pad_id)} if masks else set()
