"""Texts: class prompts, random texts, and texts of the user."""

from __future__ import annotations

import unicodedata


def spoken(name: str) -> str:
    """A folder's name for prompts: underscores and hyphens become spaces."""
    return name.replace("_", " ").replace("-", " ")


IGNORED = "tokenizers ignore case, spaces, Unicode form (NFC or NFD) and HTML entities"
"""What `as_tokenized` removes, for messages."""


def as_tokenized(name: str) -> str:
    """A name as open_clip's tokenizers clean it, without case, for comparisons."""
    if not name.isascii() or "&" in name:  # others are not changed, and the import takes seconds
        from open_clip.tokenizer import get_clean_fn

        name = get_clean_fn("whitespace")(name)
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def both(first: str, second: str) -> str:
    """Two names for a message, with escapes if they look the same."""
    alike = unicodedata.normalize("NFKC", first) == unicodedata.normalize("NFKC", second)
    quote = ascii if alike else repr
    return f"{quote(first)} and {quote(second)}"
