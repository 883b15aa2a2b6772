"""Which weights `model.pretrained` stands for, and messages for weights that cannot be loaded."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip

from trainers.errors import ConfigError, first_line, listed, nearest
from trainers.models.architecture import Architecture
from trainers.models.config import CHECKPOINTS, HUB, LOCAL_DIR, RANDOM, ModelConfig, is_path
from trainers.models.hub import WEIGHTS, check_repository, check_tag

READ_FROM_FOLDERS = (".safetensors", ".bin", ".pth")
"""File name endings that open_clip looks for in a `local-dir:`."""


def check_pretrained(model: ModelConfig, built: Architecture) -> None:
    """Raise a `ConfigError` if `model.pretrained` names no weights of this model, or wrong ones.

    No file is opened: a damaged or unsafe one is refused when it is loaded.
    """
    tag, brings_weights = model.pretrained, model.brings_its_weights
    if brings_weights and tag is not None:
        raise ConfigError(
            f"{model.name!r} brings its own weights",
            key="model.pretrained",
            value=tag,
            hint="leave the key out",
        )
    if model.name.startswith(LOCAL_DIR):
        folder = Path(model.name.removeprefix(LOCAL_DIR))
        if not any(file.suffix in READ_FROM_FOLDERS for file in folder.glob("*")):
            endings = ", ".join(f"*{ending}" for ending in READ_FROM_FOLDERS)
            problem = f"no weights in this folder ({endings})"
            raise ConfigError(problem, key="model.name", value=model.name)
    elif model.name.startswith(HUB):
        repository = model.name.removeprefix(HUB)
        check_repository(repository, WEIGHTS, f"model.name = {model.name!r}", listed=True)
    if brings_weights or tag == RANDOM:
        return

    tags = open_clip.list_pretrained_tags_by_model(built.name)
    choices = f"a checkpoint's path, or {RANDOM!r}"
    choices = f"write a tag ({', '.join(tags)}), {choices}" if tags else f"write {choices}"
    if tag is None:
        problem = f"no weights for {model.name!r}"
        raise ConfigError(problem, key="model.pretrained", value=tag, hint=choices)
    if is_path(tag):
        if Path(tag).suffix not in CHECKPOINTS:
            problem = f"weights are read from {', '.join(CHECKPOINTS)} files"
            raise ConfigError(problem, key="model.pretrained", value=tag)
        if not Path(tag).is_file():
            raise ConfigError("no such file", key="model.pretrained", value=tag)
    elif not open_clip.is_pretrained_cfg(built.name, tag):
        close = nearest(tag, tags)
        hint = f"{close}; {choices}" if close else choices
        problem = f"not a tag of {model.name!r}"
        raise ConfigError(problem, key="model.pretrained", value=tag, hint=hint)
    else:
        # QuickGELU weights in a GELU model are less accurate; open_clip only warns.
        trained_with = open_clip.get_pretrained_cfg(built.name, tag).get("quick_gelu", False)
        if trained_with and not built.config.get("quick_gelu", False):
            raise ConfigError(
                f"trained with QuickGELU, which model.name = {built.name!r} does not use",
                key="model.pretrained",
                value=tag,
                hint=f"write model.name = '{built.name}-quickgelu'",
            )
        check_tag(built.name, tag)


def misfit(error: Exception) -> str:
    """Why weights could not be loaded into a model, in one line."""
    text = str(error)
    if "TorchScript" in text or "eights only load failed" in text:
        # PyTorch's own advice is to run the code in the file.
        return "the file is damaged or holds code; save its state_dict alone, as .safetensors"
    parts = []
    for kind in ("Missing", "Unexpected"):
        if found := re.search(rf"{kind} key\(s\) in state_dict: (.*)", text):
            keys = re.findall('"([^"]+)"', found.group(1))
            parts.append(f"{kind.lower()} {listed(keys, 3)}")
    sizes = re.findall(r"size mismatch for ([^:]+): .*?\[([^\]]*)\].*?\[([^\]]*)\]", text)
    if sizes:
        name, given, wanted = sizes[0]
        more = f" and {len(sizes) - 1} more" if len(sizes) > 1 else ""
        parts.append(f"{name} is [{given}] instead of [{wanted}]{more}")
    return "; ".join(parts) or first_line(error)
