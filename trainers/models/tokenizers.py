"""Tokenizers: the one that open_clip chooses for a model, or a file that the user names.

A model's folder or repository chooses its tokenizer, but runs no code: of its `tokenizer_kwargs`
only `architecture.TOKENIZER_KEYWORDS` are used, and Python code of a Hugging Face tokenizer needs
`model.trust_remote_code` in the user's own configuration.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import (
    DEFAULT_CONTEXT_LENGTH,
    HFTokenizer,
    SimpleTokenizer,
    get_clean_fn,
)
from torch import Tensor

from trainers.errors import ConfigError, first_line
from trainers.models import tiny_clip
from trainers.models.architecture import Architecture, architecture
from trainers.models.byte_pair import byte_pair_tokenizer, read_merges
from trainers.models.config import HUB, LOCAL_DIR, TINY_CLIP, ModelConfig
from trainers.models.hub import check_repository

logger = logging.getLogger(__name__)

_NEEDS_EXTRA = "pip install 'lipsum-tune[huggingface]'"


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of a tokenizer that adds one token before each text and one behind it."""

    start: int
    end: int
    ordinary: Sequence[int]
    """Ids that texts consist of, ascending."""

    @cached_property
    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`ordinary` as an array."""
        return np.asarray(self.ordinary, dtype=np.int64)


class FileTokenizer:
    """A Hugging Face `tokenizer.json` with the interface of open_clip's tokenizers.

    Its text is cleaned as `open_clip.tokenizer.HFTokenizer` does.
    """

    def __init__(self, path: Path, context_length: int, clean: str, pad_token: int) -> None:
        from tokenizers import Tokenizer  # of the extra `huggingface`

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(context_length)
        padding = self._tokenizer.padding
        self.pad_token = pad_token if padding is None else int(padding["pad_id"])
        self._tokenizer.no_padding()  # the rows of a batch would depend on each other
        self._clean = get_clean_fn(clean)
        self.context_length, self.path = context_length, path
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Padded tokens (N, context length) of N texts."""
        cleaned = [self._clean(text) for text in ([texts] if isinstance(texts, str) else texts)]
        tokens = torch.full((len(cleaned), self.context_length), self.pad_token, dtype=torch.long)
        for row, encoding in zip(tokens, self._tokenizer.encode_batch(cleaned), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return tokens

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """None if the file does not add exactly one token before and one behind a text."""
        encoding = self._tokenizer.encode("a")
        added = encoding.special_tokens_mask
        if added[:2] != [1, 0] or added[-2:] != [0, 1]:
            return None
        start, end = encoding.ids[0], encoding.ids[-1]
        tokens = self._tokenizer.get_added_tokens_decoder().items()
        special = {start, end, *(index for index, token in tokens if token.special)}
        ordinary = sorted(set(self._tokenizer.get_vocab().values()) - special)
        return Vocabulary(start, end, tuple(ordinary))


def load_tokenizer(model: ModelConfig) -> Any:
    """Function from texts to padded tokens (N, context length); no weights are loaded.

    Raises:
        ConfigError: a package it needs is not installed, the hub is out of reach, a file is
            damaged, or the tokenizer is Python code that the user has not allowed.
    """
    built = architecture(model)
    check_tokenizer(model, built)
    if model.tokenizer is not None:
        return _of_file(model.tokenizer, built)
    if model.name == TINY_CLIP:
        return tiny_clip.tokenizer()
    keywords = tuple(sorted(dict(built.text.get("tokenizer_kwargs") or {}).items()))
    kind, length = tokenizer_kind(model, built), context_length(built)
    try:
        if kind == "siglip":
            return open_clip.get_tokenizer(built.name)
        if kind == "clip":
            return SimpleTokenizer(context_length=length, **dict(keywords))
        source = built.text["hf_tokenizer_name"]
        if model.name.startswith(LOCAL_DIR):  # as open_clip does: its own folder has the files
            source = model.name.removeprefix(LOCAL_DIR)
        mode, trust = built.text.get("tokenizer_mode"), model.trust_remote_code
        return _huggingface(source, length, mode, keywords, trust=trust)
    except (ImportError, OSError, ValueError, TypeError, AssertionError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                "its tokenizer is Python code, which is not run",
                key="model.name",
                value=model.name,
                hint="read that code, then write model.trust_remote_code = true",
            ) from None
        problem = f"its tokenizer cannot be loaded: {first_line(error)}"
        raise ConfigError(problem, key="model.name", value=model.name) from None


@cache
def _huggingface(
    source: str,
    length: int,
    mode: str | None,
    keywords: tuple[tuple[str, Any], ...],
    *,
    trust: bool,
) -> HFTokenizer:
    if trust:
        logger.warning(
            "model.trust_remote_code = true: Python code of the tokenizer in %s may run", source
        )
    # An explicit False: with None, transformers 5 asks on the terminal, and takes a `y` for a yes.
    return HFTokenizer(
        source,
        context_length=length,
        tokenizer_mode=mode,
        trust_remote_code=trust,
        **dict(keywords),
    )


def _of_file(file: str, built: Architecture) -> SimpleTokenizer | FileTokenizer:
    """The tokenizer of `model.tokenizer`, for the text tower of a model.

    Raises:
        ConfigError: the file is missing, damaged, or does not fit the model's vocabulary.
    """
    path, length = Path(file), context_length(built)
    clean = dict(built.text.get("tokenizer_kwargs") or {}).get("clean")
    tokenizer: SimpleTokenizer | FileTokenizer
    if path.suffix == ".json":
        if importlib.util.find_spec("tokenizers") is None:
            raise ConfigError(
                "needs a package", key="model.tokenizer", value=file, hint=_NEEDS_EXTRA
            )
        try:
            tokenizer = _of_json(path, length, clean or "whitespace", built.text.get("pad_id", 0))
        except Exception as error:  # the library raises plain exceptions
            problem = f"not a tokenizer of Hugging Face: {first_line(error)}"
            raise ConfigError(problem, key="model.tokenizer", value=file) from None
    else:
        tokenizer = byte_pair_tokenizer(read_merges(path), length, clean or "lower")
    size = int(built.text.get("vocab_size", open_clip.CLIPTextCfg().vocab_size))
    fits = tokenizer.vocab_size <= size
    if isinstance(tokenizer, SimpleTokenizer):  # start and end are the last two ids of the model
        fits = tokenizer.vocab_size == size
    if not fits and not built.text.get("hf_model_name"):
        raise ConfigError(
            f"has {tokenizer.vocab_size} tokens, but text_cfg.vocab_size of the model is {size}",
            key="model.tokenizer",
            value=file,
        )
    return tokenizer


_of_json = cache(FileTokenizer)


def check_tokenizer(model: ModelConfig, built: Architecture) -> None:
    """Raise a `ConfigError` if tokenizer or text tower need a package or a file that is missing.

    Nothing is downloaded.
    """
    source, tower = f"model.name = {model.name!r}", built.text.get("hf_model_name")
    if model.tokenizer is not None:
        _of_file(model.tokenizer, built)
    if tokenizer_kind(model, built) in ("clip", "file") and not tower:
        return
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "its tokenizer or text tower comes from Hugging Face",
            key="model.name",
            value=model.name,
            hint=_NEEDS_EXTRA,
        )
    tokenizer = None if model.tokenizer else built.text.get("hf_tokenizer_name")
    if tokenizer and not model.name.startswith(LOCAL_DIR) and not Path(tokenizer).is_dir():
        check_repository(tokenizer, ("tokenizer_config.json", "tokenizer.json"), source)
    if tower and not Path(tower).is_dir():
        check_repository(tower, ("config.json",), source)


def tokenizer_kind(
    model: ModelConfig, built: Architecture
) -> Literal["clip", "file", "huggingface", "siglip"]:
    """Which tokenizer is used: the user's file, or what open_clip's `get_tokenizer` chooses."""
    if model.tokenizer is not None:
        return "file"
    if built.text.get("hf_tokenizer_name"):
        return "huggingface"
    by_name = not model.name.startswith((LOCAL_DIR, HUB))
    return "siglip" if by_name and "siglip" in built.name.lower() else "clip"


def vocabulary(model: ModelConfig, built: Architecture) -> Vocabulary | None:
    """The vocabulary of the model's tokenizer; None if it adds no start and end tokens.

    Tokenizers that the model takes from the Hugging Face hub are not loaded for this: None.
    """
    if tokenizer_kind(model, built) not in ("clip", "file"):
        return None
    tokenizer = load_tokenizer(model)
    if isinstance(tokenizer, FileTokenizer):
        return tokenizer.vocabulary
    start, end = int(tokenizer.sot_token_id), int(tokenizer.eot_token_id)
    return Vocabulary(start, end, range(start))  # open_clip's last two ids are start and end


def context_length(built: Architecture) -> int:
    """Largest number of tokens of a text, start and end included."""
    return int(built.text.get("context_length") or DEFAULT_CONTEXT_LENGTH)
