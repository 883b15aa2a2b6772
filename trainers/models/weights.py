"""Whether weights can be had and read, before any model is built from them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open

from trainers.errors import ConfigError, did_you_mean, first_line
from trainers.models.architecture import Architecture
from trainers.models.config import CHECKPOINTS, HUB, LOCAL_DIR, RANDOM, ModelConfig, is_path
from trainers.models.hub import WEIGHTS, check_repository, check_tag

READ_FROM_FOLDERS = (".safetensors", ".bin", ".pth")
"""Endings that open_clip looks for in a `local-dir:`."""


def check_pretrained(model: ModelConfig, built: Architecture) -> None:
    """Raise a `ConfigError` where `model.pretrained` gives this model no weights, or wrong ones."""
    tag = model.pretrained
    if model.brings_its_weights:
        if tag is not None:
            raise ConfigError(
                f"model.pretrained = {tag!r}: {model.name!r} brings its own weights; "
                "leave the key away"
            )
        if model.name.startswith(LOCAL_DIR):
            _check_folder(Path(model.name.removeprefix(LOCAL_DIR)))
        elif model.name.startswith(HUB):
            repository = model.name.removeprefix(HUB)
            check_repository(repository, WEIGHTS, f"model.name = {model.name!r}", listed=True)
        return
    if tag is None:
        raise ConfigError(
            f"model.pretrained = null: no weights for {model.name!r}; write {_tags(built.name)}a "
            f"checkpoint's path, or {RANDOM!r}"
        )
    if tag == RANDOM:
        return
    if is_path(tag):
        check_checkpoint(Path(tag), "model.pretrained")
    elif not open_clip.is_pretrained_cfg(built.name, tag):
        known = open_clip.list_pretrained_tags_by_model(built.name)
        hint = did_you_mean(tag, known) if known else ""
        raise ConfigError(
            f"model.pretrained = {tag!r}: no tag of {model.name!r}"
            f"{hint if 'did you mean' in hint else ''}; write {_tags(built.name)}a checkpoint's "
            f"path, or {RANDOM!r}"
        )
    else:
        _check_activation(built, tag)
        check_tag(built.name, tag)


def _tags(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    return f"a tag ({', '.join(tags)}), " if tags else ""


def _check_activation(built: Architecture, tag: str) -> None:
    """QuickGELU weights in a GELU model are less accurate; open_clip only warns of it."""
    trained_with = open_clip.get_pretrained_cfg(built.name, tag).get("quick_gelu", False)
    if trained_with and not built.config.get("quick_gelu", False):
        raise ConfigError(
            f"model.pretrained = {tag!r}: trained with QuickGELU, which model.name = "
            f"{built.name!r} has not; write model.name = '{built.name}-quickgelu'"
        )


def _check_folder(folder: Path) -> None:
    files = [file for ending in READ_FROM_FOLDERS for file in sorted(folder.glob(f"*{ending}"))]
    if not files:
        endings = ", ".join(f"*{ending}" for ending in READ_FROM_FOLDERS)
        raise ConfigError(f"model.name = '{LOCAL_DIR}{folder}': no weights there ({endings})")
    for file in files:
        check_checkpoint(file, "model.name")


def check_checkpoint(path: Path, key: str) -> None:
    """Raise a `ConfigError` for a file that is not whole, holds code, or no tensors.

    Tensors stay on the disk, and nothing in a pickle is run.
    """
    where = f"{key}: {path}"
    if not path.is_file():
        raise ConfigError(f"{key}: no such file: {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                empty = not list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{where}: not a whole safetensors file ({first_line(error)})"
            ) from None
    elif path.suffix in CHECKPOINTS:
        empty = not _state_dict(_unpickled(path, where), where)
    else:
        raise ConfigError(f"{where}: weights are read from {', '.join(CHECKPOINTS)} files")
    if empty:
        raise ConfigError(f"{where}: holds no tensors")


def _unpickled(path: Path, where: str) -> Any:
    try:
        return _torch_load(path)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        text = str(error)
    if "TorchScript" in text:
        what = "a TorchScript archive, which is code"
    elif found := re.search(r"unsupported (?:global|class|operand)[^\n]*", text, re.IGNORECASE):
        what = f"a pickle of more than tensors ({found.group().partition(' was not')[0]})"
    elif "Weights only load failed" in text:  # and its advice is to run what is in the file
        raise ConfigError(f"{where}: not a whole checkpoint")
    else:
        raise ConfigError(f"{where}: not a whole checkpoint ({text.partition(chr(10))[0]})")
    raise ConfigError(
        f"{where}: {what}, and is not run; save its state_dict alone, as .safetensors"
    )


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is refused
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # before PyTorch 1.6


def _state_dict(contents: Any, where: str) -> Mapping[str, Any]:
    state = contents.get("state_dict", contents) if isinstance(contents, dict) else contents
    if not isinstance(state, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise ConfigError(f"{where}: holds no state_dict: a mapping from names to tensors")
    return state


def misfit(error: Exception) -> str:
    """What is wrong between a checkpoint and a model, in one line, from PyTorch's page of keys."""
    text = str(error)
    parts = []
    for kind in ("Missing", "Unexpected"):
        if found := re.search(rf"{kind} key\(s\) in state_dict: (.*)", text):
            keys = re.findall('"([^"]+)"', found.group(1))
            parts.append(f"{kind.lower()} {_some(keys)}")
    sizes = re.findall(r"size mismatch for ([^:]+): .*?\[([^\]]*)\].*?\[([^\]]*)\]", text)
    if sizes:
        name, given, wanted = sizes[0]
        more = f" and {len(sizes) - 1} more" if len(sizes) > 1 else ""
        parts.append(f"{name} is [{given}] instead of [{wanted}]{more}")
    return "; ".join(parts) or first_line(error)


def _some(keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more
