"""Which tokenizer a model has, and the packages it needs."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal

import open_clip

from trainers.errors import ConfigError, first_line
from trainers.models import tiny_clip
from trainers.models.architecture import Architecture, architecture
from trainers.models.config import HUB, LOCAL_DIR, TINY_CLIP, ModelConfig
from trainers.models.hub import check_repository

TokenizerKind = Literal["clip", "huggingface", "siglip"]


def tokenizer_kind(model: ModelConfig, built: Architecture) -> TokenizerKind:
    """By the rules of open_clip's `get_tokenizer`."""
    if built.text.get("hf_tokenizer_name"):
        return "huggingface"
    by_name = not model.name.startswith((LOCAL_DIR, HUB))
    return "siglip" if by_name and "siglip" in built.name.lower() else "clip"


def load_tokenizer(model: ModelConfig) -> Any:
    """From texts to tokens (N, context length), padded; no weights are loaded.

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
        raise ConfigError(
            f"model.name = {model.name!r}: its tokenizer: {first_line(error)}"
        ) from None


@cache
def _tokenizer(name: str) -> Any:
    return open_clip.get_tokenizer(name)


def check_tokenizer(model: ModelConfig, built: Architecture) -> None:
    """Raise a `ConfigError` where tokenizer or text tower need what is not installed or not there.

    Nothing is fetched.
    """
    source, tower = f"model.name = {model.name!r}", built.text.get("hf_model_name")
    if tokenizer_kind(model, built) == "clip" and not tower:
        return
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            f"{source}: its tokenizer or text tower comes from Hugging Face; "
            "pip install 'lipsum-tune[huggingface]'"
        )
    tokenizer = built.text.get("hf_tokenizer_name")
    if tokenizer and not model.name.startswith(LOCAL_DIR) and not Path(tokenizer).is_dir():
        check_repository(tokenizer, ("tokenizer_config.json", "tokenizer.json"), source)
    if tower and not Path(tower).is_dir():
        check_repository(tower, ("config.json",), source)
