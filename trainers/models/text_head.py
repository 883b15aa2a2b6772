"""Zero-shot classifiers made of prompts, cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.folders import waiting_lock
from trainers.models.text import encode_tokens, shortened
from trainers.texts import Prompts

TEXTS_A_BATCH = 1024
PACKAGES = ("numpy", "open_clip_torch", "pillow", "timm", "torch", "torchvision", "transformers")
"""What features depend on beside the model."""
KEPT_HEADS = 100
"""Heads in the cache, of some 2 MB each. Those unused for longest are removed."""


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
    rows = []
    contexts = torch.zeros(())
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
            problem = f"the tokenizer gives the class names {other!a} and {name!a} the same tokens"
            hint = "give them other names in class_names of a suite of your own"
            raise ConfigError(problem, key="data.suite", hint=hint)


def zero_shot_heads(
    clip: nn.Module, tokenizer: Any, prompts: Prompts, device: torch.device | str = "cpu"
) -> Heads:
    """The heads of a model that is on `device`."""
    where = torch.device(device)

    def encode(tokens: Tensor) -> Tensor:
        with torch.autocast(where.type, enabled=False):
            return encode_tokens(clip, tokens.to(where))

    return heads_of(encode, lambda texts: shortened(clip, tokenizer(texts)), prompts)


def cached_heads(
    clip: nn.Module,
    tokenizer: Any,
    prompts: Prompts,
    digest: str,
    device: torch.device | str = "cpu",
) -> Heads:
    """`zero_shot_heads` on the CPU, cached on disk under the model's `digest` and the prompts.

    Trials that start together wait for the first one to compute them.
    """
    tokens = tokenizer([*prompts.names, *prompts.templates]).tolist()
    name = hashlib.sha256(repr((digest, prompts, tokens)).encode()).hexdigest()
    folder = platformdirs.user_cache_path("lipsum-tune") / "heads"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    with waiting_lock(file.with_suffix(".lock"), "encoding class names"):
        if not file.exists():
            _remove_unused(folder, KEPT_HEADS - 1)
            heads = zero_shot_heads(clip, tokenizer, prompts, device)
            tensors = {"head": heads.classes.cpu(), "contexts": heads.contexts.cpu()}
            unfinished = file.with_suffix(".tmp")
            save_file(tensors, unfinished)
            unfinished.replace(file)
        now = time.time_ns()  # finer than the clock of file systems
        os.utime(file, ns=(now, now))
        kept = load_file(file)
    return Heads(kept["head"], kept["contexts"])


def _remove_unused(folder: Path, most: int) -> None:
    """Remove the heads unused for longest but `most`, with their locks."""
    used = {file: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    for file in sorted(used, key=used.__getitem__)[: max(0, len(used) - most)]:
        file.unlink(missing_ok=True)
        file.with_suffix(".lock").unlink(missing_ok=True)


def model_digest(clip: nn.Module, config: Mapping[str, Any]) -> str:
    """A hash of weights, configuration and versions: all that features depend on."""

    def of(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return name.encode() + hashlib.sha256(values).digest()

    packages = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[package] = version(package)
    described = json.dumps([config, packages], sort_keys=True, default=str).encode()
    with ThreadPoolExecutor() as pool:  # hashing takes a second for each GB
        return hashlib.sha256(
            b"".join([described, *pool.map(of, sorted(clip.state_dict().items()))])
        ).hexdigest()
