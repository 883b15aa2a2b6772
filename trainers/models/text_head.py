"""Zero-shot classifiers made of prompts, cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import open_clip
import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trainers.data.storage import open_store
from trainers.errors import ConfigError
from trainers.models.architecture import Architecture
from trainers.models.text import encode_tokens, ends_at_the_end_token
from trainers.texts import both
from trainers.texts.prompts import Prompts

FORMAT = 3
"""Increase it when the same inputs give other heads than before."""

TEXTS_A_BATCH = 1024


@dataclass(frozen=True)
class Heads:
    """Classifiers made of the prompts of K classes in T templates."""

    classes: Tensor
    """(K, D) float32: the zero-shot head, the mean of each class over the templates."""
    contexts: Tensor
    """(T, D) float32: the mean of each template over the classes, which represents a style."""


@torch.no_grad()
def heads_of(
    encode: Callable[[Tensor], Tensor], tokenize: Callable[[list[str]], Tensor], prompts: Prompts
) -> Heads:
    """Means of normalised text features, each L2-normalised again.

    `encode` maps tokens (N, n) to L2-normalised features (N, D), `tokenize` N texts to tokens.
    """
    num_templates = len(prompts.templates)
    per_batch = max(1, TEXTS_A_BATCH // num_templates)
    rows, contexts = [], torch.zeros(())
    for start in range(0, len(prompts.names), per_batch):
        names = prompts.names[start : start + per_batch]
        features = encode(tokenize([text for name in names for text in prompts.of(name)])).float()
        by_name = features.unflatten(0, (len(names), num_templates))
        rows.append(by_name.mean(dim=1))
        contexts = contexts.to(features) + by_name.sum(dim=0)
    normalize = nn.functional.normalize
    return Heads(normalize(torch.cat(rows), dim=-1), normalize(contexts, dim=-1))


def check_distinct_tokens(tokenizer: Any, prompts: Prompts) -> None:
    """Raise a ConfigError if different names have the same tokens, so that their rows are equal."""
    first: dict[tuple[int, ...], str] = {}
    for name, tokens in zip(prompts.names, tokenizer(list(prompts.names)).tolist(), strict=True):
        other = first.setdefault(tuple(tokens), name)
        if other != name:
            raise ConfigError(
                f"the model's tokenizer gives the class names {both(other, name)} the same tokens",
                key="data.suite",
                hint="give them other names in class_names of a suite of your own",
            )


def tokenize_short(clip: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    """Tokens (N, n) with n as short as the model `clip` allows."""
    tokens: Tensor = tokenizer(texts)
    if ends_at_the_end_token(clip):  # the end token is the largest id
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
    return tokens


def zero_shot_heads(
    clip: nn.Module, tokenizer: Any, prompts: Prompts, device: torch.device | str = "cpu"
) -> Heads:
    """The heads of a model that is on `device`."""
    where = torch.device(device)

    def encode(tokens: Tensor) -> Tensor:
        with torch.autocast(where.type, enabled=False):
            return encode_tokens(clip, tokens.to(where))

    return heads_of(encode, lambda texts: tokenize_short(clip, tokenizer, texts), prompts)


def cached_heads(
    clip: nn.Module,
    tokenizer: Any,
    prompts: Prompts,
    built: Architecture,
    device: torch.device | str = "cpu",
) -> Heads:
    """`zero_shot_heads` on the CPU, cached on disk under a hash of all inputs.

    Trials that start together wait for the first one to compute them.
    """
    digest = head_digest(clip, tokenizer, prompts, built)
    path = platformdirs.user_cache_path("lipsum-tune") / "heads" / f"{digest}.safetensors"
    if (kept := _read(path)) is not None:
        return kept
    heads = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if (kept := _read(path)) is not None:
                return kept
            heads = _on_cpu(zero_shot_heads(clip, tokenizer, prompts, device))
            with open_store(path.parent).write(path.name) as file:
                file.write(save({"head": heads.classes, "contexts": heads.contexts}))
    except (OSError, SafetensorError):  # without room on the disk, the heads are not cached
        pass
    return _on_cpu(zero_shot_heads(clip, tokenizer, prompts, device)) if heads is None else heads


def _on_cpu(heads: Heads) -> Heads:
    return Heads(heads.classes.cpu().contiguous(), heads.contexts.cpu().contiguous())


def _read(path: Path) -> Heads | None:
    """The cached heads; None if they are missing or cannot be read."""
    try:
        kept = load_file(path)
        return Heads(kept["head"], kept["contexts"])
    except (OSError, SafetensorError, KeyError):
        return None


def head_digest(clip: nn.Module, tokenizer: Any, prompts: Prompts, built: Architecture) -> str:
    """A hash of text weights, configuration, versions, names, templates and their tokens.

    Names and templates are tokenised separately, not combined: this identifies the tokenizer as
    well, in a hundredth of the time.
    """
    digest = hashlib.sha256()
    settings = {
        "format": FORMAT,
        "open_clip": open_clip.__version__,
        "torch": torch.__version__,
        **installed("transformers"),
        "text": dict(built.text),
        "quick_gelu": built.config.get("quick_gelu", False),
        "names": prompts.names,
        "templates": prompts.templates,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for texts in (prompts.names, prompts.templates):
        digest.update(tensor_bytes(tokenizer(list(texts))))
    text = cast(nn.Module, getattr(clip, "text", clip))
    for name, parameter in sorted(text.named_parameters()):
        if not name.startswith(("visual.", "logit_")):
            digest.update(name.encode())
            digest.update(tensor_bytes(parameter))
    return digest.hexdigest()


def installed(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed; none is imported."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor, copied only from another device or if not contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
