"""From a model's name to its open_clip configuration; no weights are read."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip.hf_configs import arch_dict

from trainers.errors import ConfigError, first_line, nearest
from trainers.models import tiny_clip
from trainers.models.config import CONFIG, HUB, LOCAL_DIR, TINY_CLIP, ModelConfig
from trainers.models.hub import check_repository

REQUIRED = ("embed_dim", "vision_cfg", "text_cfg")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
TOKENIZER_KEYWORDS = ("clean", "language", "strip_sep_token")
"""Keys of `text_cfg.tokenizer_kwargs` that are used. Others name files or run code."""
TEXT_TOWERS = tuple(arch_dict)
"""Types of Hugging Face models that open_clip can use as a text tower."""


@dataclass(frozen=True)
class Architecture:
    """A model configuration of open_clip."""

    name: str
    """Name under which open_clip's functions find it."""
    config: Mapping[str, Any]
    """`embed_dim`, `vision_cfg`, `text_cfg` and further keys of open_clip."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Mean, std, interpolation and resize mode that open_clip would not find by itself."""

    @property
    def text(self) -> Mapping[str, Any]:
        """Configuration of the text tower and its tokenizer."""
        text: Mapping[str, Any] = self.config["text_cfg"]
        return text

    @property
    def vision(self) -> Mapping[str, Any]:
        """Configuration of the image tower."""
        vision: Mapping[str, Any] = self.config["vision_cfg"]
        return vision


def architecture(model: ModelConfig) -> Architecture:
    """The configuration that `model.name` stands for.

    Raises:
        ConfigError: unknown name, a file that is no model configuration, or a hub out of reach.
    """
    name = model.name
    if name == TINY_CLIP:
        return Architecture(f"{LOCAL_DIR}{tiny_clip.FOLDER}", tiny_clip.model_config())
    if name.startswith(LOCAL_DIR):
        path = Path(name.removeprefix(LOCAL_DIR)) / CONFIG
        contents = _read(path)
        if "model_cfg" not in contents:
            raise ConfigError(f"{path} has no 'model_cfg'", key="model.name", value=name)
        return Architecture(name, _complete(contents["model_cfg"], path))
    if name.startswith(HUB):
        return Architecture(name, _from_hub(name))
    if name.endswith(".json"):  # open_clip's own schema, bare or within `model_cfg`
        contents = _read(Path(name))
        config = _complete(contents.get("model_cfg", contents), Path(name))
        given = contents.get("preprocess_cfg", {}) if "model_cfg" in contents else {}
        preprocessing = {key: value for key, value in given.items() if key in PREPROCESSING}
        return Architecture(_register(Path(name).stem, config), config, preprocessing)
    if name not in open_clip.list_models():
        hint = nearest(name, [TINY_CLIP, *open_clip.list_models()])
        hint = hint or "see open_clip.list_models()"
        raise ConfigError("unknown model", key="model.name", value=name, hint=hint)
    return Architecture(name, open_clip.get_model_config(name), _preprocessing_of_tags(name))


def _preprocessing_of_tags(name: str) -> dict[str, Any]:
    """The preprocessing values on which all pre-trained weights of a built-in model agree.

    For weights from a file, open_clip would use OpenAI's values, which are wrong for SigLIP, for
    example. The values of a tag are the same or more specific.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    agreed = {}
    for key in PREPROCESSING:
        values = [config.get(key) for config in configs]
        if values and values[0] is not None and all(value == values[0] for value in values):
            agreed[key] = values[0]
    return agreed


@cache
def _from_hub(name: str) -> dict[str, Any]:
    source, repository = f"model.name = {name!r}", name.removeprefix(HUB)
    check_repository(repository, (CONFIG,), source)
    try:
        return _complete(open_clip.get_model_config(name), Path(name))
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        problem = f"no configuration could be fetched: {first_line(error)}"
        raise ConfigError(problem, key="model.name", value=name) from None


def _register(stem: str, config: Mapping[str, Any]) -> str:
    """Make a configuration known to open_clip under a name that no other model has.

    open_clip uses the file's name alone, so a user's `ViT-B-32.json` would replace the built-in
    model for the whole process.
    """
    text = json.dumps(config, sort_keys=True)
    name = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            file.write_text(text, encoding="utf-8")
            open_clip.add_model_config(file)
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}", key="model.name") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}", key="model.name") from None
    if not isinstance(contents, dict):
        raise ConfigError(f"{path} is no model configuration of open_clip", key="model.name")
    return contents


def _complete(config: Any, source: Path) -> dict[str, Any]:
    """A configuration with all required keys; whether open_clip accepts it, `check_model` tests.

    Raises:
        ConfigError: a key is missing, or one could run code or fetch another model.
    """
    missing = [key for key in REQUIRED if not isinstance(config, dict) or key not in config]
    if missing or not all(isinstance(config[key], dict) for key in REQUIRED[1:]):
        problem = f"{missing[0]!r} is missing" if missing else "a *_cfg is no mapping"
        raise ConfigError(
            f"{source} is no model configuration of open_clip: {problem}", key="model.name"
        )
    keywords = config["text_cfg"].get("tokenizer_kwargs") or {}
    if refused := [key for key in keywords if key not in TOKENIZER_KEYWORDS]:
        raise ConfigError(
            f"{source}: text_cfg.tokenizer_kwargs.{refused[0]} is not supported, as a model's own "
            "files must not run code",
            key="model.name",
            hint=f"only {', '.join(TOKENIZER_KEYWORDS)} are",
        )
    tower = config["vision_cfg"].get("timm_model_name")
    if tower and not timm.is_model(str(tower)):
        problem = f"{source}: vision_cfg.timm_model_name = {tower!r} is no model of timm"
        raise ConfigError(problem, key="model.name")
    return dict(config)
