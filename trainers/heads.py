"""The zero-shot classifier: one row a class, made of prompts, kept on disk between trials."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import open_clip
import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainers.models import Architecture, encode_tokens, ends_at_the_end_token
from trainers.prompts import Prompts

FORMAT = 2
"""Raised when the same inputs shall give another head."""

TEXTS_A_BATCH = 1024


@torch.no_grad()
def zero_shot_head(
    clip: nn.Module, tokenizer: Any, prompts: Prompts, device: torch.device | str = "cpu"
) -> Tensor:
    """The (K, D) float32 head: the mean over the templates of normalised text features.

    Each class embedding is L2-normalised again.

    Args:
        clip: the model, on `device`.
        tokenizer: the model's own.
        prompts: names and templates.
        device: where texts are encoded, several classes at once.
    """
    where = torch.device(device)
    per_batch = max(1, TEXTS_A_BATCH // len(prompts.templates))
    cut = ends_at_the_end_token(clip)
    rows = []
    for start in range(0, len(prompts.names), per_batch):
        names = prompts.names[start : start + per_batch]
        tokens = tokenizer([text for name in names for text in prompts.of(name)])
        if cut:  # nothing behind the end token, the largest id, matters
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        with torch.autocast(where.type, enabled=False):
            features = encode_tokens(clip, tokens.to(where)).float()
        rows.append(features.view(len(names), len(prompts.templates), -1).mean(dim=1))
    return nn.functional.normalize(torch.cat(rows), dim=-1)


def cached_head(
    clip: nn.Module,
    tokenizer: Any,
    prompts: Prompts,
    built: Architecture,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`zero_shot_head` on the CPU, kept on disk under a hash of all that goes into it.

    Trials that start together wait for the first one to make it.
    """
    digest = head_digest(clip, tokenizer, prompts, built)
    path = platformdirs.user_cache_path("lipsum-tune") / "heads" / f"{digest}.safetensors"
    if (kept := _read(path)) is not None:
        return kept
    head = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if (kept := _read(path)) is not None:
                return kept
            head = zero_shot_head(clip, tokenizer, prompts, device).cpu().contiguous()
            _keep(head, path)
    except (OSError, SafetensorError):  # a full disk costs the next trial time, not this one
        pass
    return zero_shot_head(clip, tokenizer, prompts, device).cpu() if head is None else head


def _keep(head: Tensor, path: Path) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        save_file({"head": head}, unfinished)
        unfinished.replace(path)  # whoever reads it must never find half a file
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> Tensor | None:
    """What was kept; nothing where it cannot be read, and is made again."""
    try:
        return load_file(path)["head"]
    except (OSError, SafetensorError, KeyError):
        return None


def head_digest(clip: nn.Module, tokenizer: Any, prompts: Prompts, built: Architecture) -> str:
    """A hash of the text weights, the configuration, the names and templates and their tokens.

    Names and templates are tokenised apart, not in each other: that says as much of the tokenizer
    at a hundredth of the time.
    """
    digest = hashlib.sha256()
    settings = {
        "format": FORMAT,
        "open_clip": open_clip.__version__,
        "text": dict(built.text),
        "quick_gelu": built.config.get("quick_gelu", False),
        "names": prompts.names,
        "templates": prompts.templates,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for texts in (prompts.names, prompts.templates):
        digest.update(_bytes(tokenizer(list(texts))))
    for name, parameter in _text_parameters(clip):
        digest.update(name.encode())
        digest.update(_bytes(parameter))
    return digest.hexdigest()


def _text_parameters(clip: nn.Module) -> Iterator[tuple[str, Tensor]]:
    text = cast(nn.Module, getattr(clip, "text", clip))
    for name, parameter in sorted(text.named_parameters()):
        if not name.startswith(("visual.", "logit_")):
            yield name, parameter


def _bytes(tensor: Tensor) -> Any:
    """A tensor's memory; copied only if it lies on another device or in pieces."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
