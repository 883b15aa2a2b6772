"""Models of open_clip and their tokenizers.

The driver loads a model once before anything starts (`check_model`), so that whatever open_clip
refuses is reported in one line; each worker then loads it for itself.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from torch import nn

from trainers.errors import ConfigError, nearest, shortened
from trainers.models import tiny_clip
from trainers.models.config import LOCAL_DIR, RANDOM, TINY_CLIP, ModelConfig
from trainers.models.image import image_input
from trainers.models.text import embedding, ignored_tokens
from trainers.texts import Vocabulary

RANDOM_SEED = 0
"""Seed of `model.pretrained = random`: every worker and trial must start from the same model."""

MERGES = "bpe.txt.gz"
"""Merges of a tokenizer of the model's own, in its folder: as CLIP's, for open_clip's class."""

MERGES_BYTES = 2**24
"""Of `MERGES` unpacked; CLIP's have 3 MB."""

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""Keys of open_clip's `preprocess_cfg`."""

_TOKENIZER_KEYWORDS = {"clean", "language", "strip_sep_token"}
"""Keys of `text_cfg.tokenizer_kwargs` that are used. Others name files or run code."""


def model_config(model: ModelConfig) -> dict[str, Any]:
    """open_clip's configuration of a model: `embed_dim`, `vision_cfg`, `text_cfg` and others."""
    name = location(model)
    for folder in map(Path, model.paths):
        for path in (folder, *folder.glob("*")):  # open_clip would wait for a pipe
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ConfigError("not a regular file", key="model.name", value=str(path))
    if not model.brings_its_weights and name not in open_clip.list_models():
        hint = nearest(name, [TINY_CLIP, *open_clip.list_models()]) or "see open_clip.list_models()"
        raise ConfigError("unknown model", key="model.name", value=name, hint=hint)
    with _one_line(model, "no model configuration"):
        config: dict[str, Any] = open_clip.get_model_config(name)
        config["text_cfg"].keys(), config["vision_cfg"].keys()  # both are mappings
    return config


def location(model: ModelConfig) -> str:
    """The name under which open_clip finds a model."""
    return f"{LOCAL_DIR}{tiny_clip.FOLDER}" if model.name == TINY_CLIP else model.name


@lru_cache(maxsize=8)
def check_model(model: ModelConfig) -> None:
    """Load a model and its tokenizer once in this process, and encode two texts."""
    clip, tokenizer = load_clip(model), load_tokenizer(model)
    image_input(clip)
    words = Vocabulary(tokenizer, ignored_tokens(clip))
    if words.ids.max() >= (room := embedding(clip).num_embeddings):
        problem = f"its tokenizer has tokens up to {words.ids.max()}, its text tower {room}"
        hint = f"in a folder of your own, {MERGES} or Hugging Face's files name the tokenizer"
        raise ConfigError(problem, key="model.name", value=model.name, hint=hint)
    with _one_line(model, "its text tower does not work"), torch.no_grad():
        first, second = cast(Any, clip).encode_text(tokenizer(["a cat", "two dogs"]))
    if torch.equal(first, second):
        problem = "its text tower gives different texts the same features (pool_type, eos_id?)"
        raise ConfigError(problem, key="model.name", value=model.name)


def load_clip(model: ModelConfig) -> nn.Module:
    """The model in evaluation mode, float32, on the CPU, all parameters frozen."""
    return create_clip(model).requires_grad_(False)


def create_clip(model: ModelConfig) -> nn.Module:
    """As `load_clip`, but the parameters that open_clip would train require gradients."""
    config, tag = model_config(model), model.pretrained
    if model.brings_its_weights and tag is not None:
        problem, hint = f"{model.name!r} brings its own weights", "leave the key out"
        raise ConfigError(problem, key="model.pretrained", value=tag, hint=hint)
    return _create(
        model,
        config,
        pretrained=None if tag == RANDOM else tag,
        weights_only=True,
        require_pretrained=tag != RANDOM,
        force_preprocess_cfg={} if model.brings_its_weights else _check_tag(model, config),
    ).eval()


def skeleton(model: ModelConfig) -> nn.Module:
    """The model on PyTorch's meta device: names and shapes of its parameters, without weights."""
    with torch.device("meta"):
        return _create(model, model_config(model), device="meta", load_weights=False)


def _create(model: ModelConfig, config: dict[str, Any], **options: Any) -> nn.Module:
    with _one_line(model, "it cannot be loaded"), torch.random.fork_rng(devices=[]):
        if tower := config["text_cfg"].get("hf_model_name"):
            # open_clip says nothing on foreign code, and transformers asks on the terminal.
            from transformers import AutoConfig

            kind = AutoConfig.from_pretrained(tower, trust_remote_code=False).model_type
            if kind not in arch_dict:
                raise ValueError(f"type {kind!r} is not one of {', '.join(arch_dict)}")
        torch.default_generator.manual_seed(RANDOM_SEED)
        return open_clip.create_model(location(model), pretrained_text=False, **options)


def load_tokenizer(model: ModelConfig) -> Any:
    """Function from texts to padded tokens (N, context length), which open_clip chooses."""
    text, name = model_config(model)["text_cfg"], location(model)
    if refused := sorted(set(text.get("tokenizer_kwargs") or {}) - _TOKENIZER_KEYWORDS):
        problem = f"text_cfg.tokenizer_kwargs.{refused[0]}: a model must not run code or name files"
        raise ConfigError(problem, key="model.name", value=model.name)
    options: dict[str, Any] = {}
    if text.get("hf_tokenizer_name"):
        # With None, transformers asks on the terminal whether foreign code may run.
        options = {"trust_remote_code": False}
    elif (merges := Path(name.removeprefix(LOCAL_DIR), MERGES)).is_file():
        options = {"bpe_path": str(merges)}
    with _one_line(model, "its tokenizer cannot be loaded"):
        if "bpe_path" in options:
            with gzip.open(merges) as file:
                if len(file.read(MERGES_BYTES + 1)) > MERGES_BYTES:
                    raise ValueError(f"{MERGES} unpacks to more than {MERGES_BYTES:,} bytes")
        return open_clip.get_tokenizer(name, **options)


@lru_cache(maxsize=8)
def vocabulary(model: ModelConfig) -> Vocabulary:
    """Layout and tokens of a model's texts; no weights are loaded."""
    return Vocabulary(load_tokenizer(model))


def _check_tag(model: ModelConfig, config: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing for weights of a built-in model that are not those of a tag.

    open_clip would use OpenAI's values for a file. Taken is that on which all tags of the model
    agree: for SigLIP, mean and std of 0.5.
    """
    name, tag, key = model.name, model.pretrained, "model.pretrained"
    tags = open_clip.list_pretrained_tags_by_model(name)
    configs = {known: open_clip.get_pretrained_cfg(name, known) for known in tags}
    if tag is not None and open_clip.is_pretrained_cfg(name, tag):
        quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        if quick and not config.get("quick_gelu", False):
            problem = f"trained with QuickGELU, which model.name = {name!r} does not use"
            hint = f"write model.name = '{name}-quickgelu'"
            raise ConfigError(problem, key=key, value=tag, hint=hint)
        return {}
    if tag != RANDOM and not (tag and Path(tag).is_file()):
        hint = f"write a tag ({', '.join(tags)}), a checkpoint's path, or {RANDOM!r}"
        close = nearest(tag, tags) if tag else None
        hint = f"{close}; {hint}" if close else hint
        raise ConfigError(f"no weights of {name!r}", key=key, value=tag, hint=hint)
    found = {}
    for item in PREPROCESSING:
        values = [known.get(item) for known in configs.values()]
        if values and values[0] is not None and values.count(values[0]) == len(values):
            found[item] = values[0]
    return found


@contextmanager
def _one_line(model: ModelConfig, problem: str) -> Iterator[None]:
    """Turn whatever open_clip, PyTorch, transformers and the hub raise into a `ConfigError`.

    Their log, of random weights, of each attempt to reach the hub or of the error, is not shown.
    """
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = None
        refused = ("eights only load failed", "TorchScript", "allow_pickle")
        if any(words in reason for words in refused):
            # The advice of PyTorch and NumPy is to run the code in the file.
            reason = "it is damaged or holds code; save its state_dict alone, as .safetensors"
        elif "trust_remote_code" in reason:
            reason = "it is Python code, which is not run"
        elif isinstance(error, ImportError) or "pip install transformers" in reason:
            hint = "pip install 'lipsum-tune[huggingface]'"
        problem = f"{problem}: {shortened(reason, 300)}"
        raise ConfigError(problem, key="model.name", value=model.name, hint=hint) from None
    finally:
        logging.disable(silenced)
