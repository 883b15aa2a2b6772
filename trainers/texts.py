"""Texts: prompts, which are class names in templates, and random texts for any tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainers.errors import ConfigError
from trainers.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATES = ("openai_imagenet", "simple_imagenet")
"""Names of templates: the 80 of CLIP's authors, and the 7 that they found nearly as good."""


@cache
def named_templates(name: str = "openai_imagenet") -> tuple[str, ...]:
    """The templates of one of these names, each with one `{}`."""
    import open_clip

    return tuple(template("{}") for template in getattr(open_clip, f"{name.upper()}_TEMPLATES"))


@dataclass(frozen=True)
class Prompts:
    """Prompts of K classes: every name in every template."""

    names: tuple[str, ...]
    """(K,) class names as used in prompts, in the order of the classes."""
    templates: tuple[str, ...] = field(default_factory=named_templates)
    """Each with one `{}`."""

    def of(self, name: str) -> list[str]:
        """All texts of one class."""
        return [template.replace("{}", name) for template in self.templates]


class Vocabulary:
    """The tokens and the layout of a tokenizer's texts.

    The tokenizer itself tells how a text is laid out: all words of a text are one letter, and where
    the tokens of two such texts differ stand the ordinary tokens; all others are the frame. A
    random text is the frame with ordinary tokens drawn from the vocabulary. CLIP has a start and an
    end token, RoBERTa other ones, SigLIP only an end token, which is its padding, too.

    Args:
        tokenizer: of open_clip: from N texts to padded tokens (N, context length).
        ignored: tokens that the text tower masks, which random texts do not contain.
    """

    def __init__(self, tokenizer: Any, ignored: Iterable[int] = ()) -> None:
        self._tokenizer, self._ignored = tokenizer, frozenset(ignored)
        self._frames: dict[int, tuple[Tensor, slice]] = {}

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(V,) ordinary tokens, ascending: neither special ones nor ignored ones."""
        inner = getattr(self._tokenizer, "tokenizer", self._tokenizer)  # of Hugging Face, wrapped
        every = inner.get_vocab() if hasattr(inner, "get_vocab") else inner.encoder
        added = getattr(inner, "added_tokens_decoder", {}).items()
        special = {*inner.all_special_ids, *(index for index, token in added if token.special)}
        return np.array(sorted({*every.values()} - special - self._ignored), dtype=np.int64)

    @cached_property
    def longest(self) -> int:
        """Ordinary tokens of the longest text."""
        context = self._tokenizer(["a"]).shape[1]
        return int(self._differences(context)[1].sum(dim=-1).max())

    def frame(self, length: int) -> tuple[Tensor, slice]:
        """The tokens (n,) of some text, and where its `length` ordinary ones stand."""
        if length not in self._frames:
            texts, differs = self._differences(length)
            fitting = (differs.sum(dim=-1) == length).nonzero().tolist()
            for first, second in fitting:
                at = differs[first, second].nonzero().flatten().tolist()
                if at[-1] - at[0] + 1 == length:
                    self._frames[length] = texts[first], slice(at[0], at[-1] + 1)
                    break
            else:
                problem = f"its tokenizer has no text of {length} tokens"
                raise ConfigError(problem, key="model.name", hint=f"the longest: {self.longest}")
        return self._frames[length]

    def _differences(self, words: int) -> tuple[Tensor, Tensor]:
        """Tokens of a text of `words` equal letters for each letter, (26, n), and whether they
        differ between two letters, (26, 26, n)."""
        texts = self._tokenizer([" ".join(letter * words) for letter in ascii_lowercase])
        return texts, texts[:, None] != texts


def random_texts(
    vocabulary: Vocabulary, count: int, length: int, *, seed: int, step: int
) -> Tensor:
    """The random texts of one step, (count, n) int64: `length` random tokens in their frame.

    Tokens are uniform over the ordinary ones of the vocabulary.
    """
    import torch

    ids, (frame, inside) = vocabulary.ids, vocabulary.frame(length)
    drawn = generator(seed, "random texts", step).integers(
        0, len(ids), size=(count, length), dtype=np.int64
    )
    texts = frame.repeat(count, 1)
    texts[:, inside] = torch.from_numpy(ids[drawn])
    return texts
