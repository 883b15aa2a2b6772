"""From a model's name to its open_clip configuration, wherever that lies; no weights are read."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm

from trainers.errors import ConfigError, did_you_mean, first_line
from trainers.models import tiny_clip
from trainers.models.config import HUB, LOCAL_DIR, TINY_CLIP, ModelConfig
from trainers.models.hub import CONFIG, check_repository

REQUIRED = ("embed_dim", "vision_cfg", "text_cfg")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Architecture:
    """A model configuration of open_clip."""

    name: str
    """By which open_clip's functions find it."""
    config: Mapping[str, Any]
    """`embed_dim`, `vision_cfg`, `text_cfg` and what else open_clip takes."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Mean, std, interpolation and resize mode, where open_clip would not know of them."""

    @property
    def text(self) -> Mapping[str, Any]:
        """The configuration of the text tower and its tokenizer."""
        text: Mapping[str, Any] = self.config["text_cfg"]
        return text

    @property
    def vision(self) -> Mapping[str, Any]:
        """The configuration of the image tower."""
        vision: Mapping[str, Any] = self.config["vision_cfg"]
        return vision


def architecture(model: ModelConfig) -> Architecture:
    """The configuration that `model.name` stands for.

    Raises:
        ConfigError: an unknown name, a file that is no model configuration, a hub out of reach.
    """
    name = model.name
    if name == TINY_CLIP:
        return Architecture(f"{LOCAL_DIR}{tiny_clip.FOLDER}", tiny_clip.model_config())
    if name.startswith(LOCAL_DIR):
        path = Path(name.removeprefix(LOCAL_DIR)) / CONFIG
        contents = _read(path)
        if "model_cfg" not in contents:
            raise ConfigError(f"model.name = {name!r}: {path} has no 'model_cfg'")
        return Architecture(name, _valid(contents["model_cfg"], path))
    if name.startswith(HUB):
        return Architecture(name, _from_hub(name))
    if name.endswith(".json"):
        return _custom(Path(name))
    if name not in open_clip.list_models():
        hint = did_you_mean(name, [TINY_CLIP, *open_clip.list_models()])
        short = hint if "did you mean" in hint else " (see open_clip.list_models())"
        raise ConfigError(f"model.name = {name!r} is not known{short}")
    return Architecture(name, open_clip.get_model_config(name), _preprocessing_of_tags(name))


def _preprocessing_of_tags(name: str) -> dict[str, Any]:
    """What all pre-trained weights of a built-in model agree on.

    For weights from a file open_clip would fall back on OpenAI's values, which are wrong for, say,
    SigLIP. A tag's own values are the same or more specific.
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
        return _valid(open_clip.get_model_config(name), Path(name))
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{source}: no configuration could be fetched: {first_line(error)}"
        ) from None


def _custom(path: Path) -> Architecture:
    """A user's model configuration: open_clip's own schema, bare or within `model_cfg`."""
    contents = _read(path)
    config = _valid(contents.get("model_cfg", contents), path)
    given = contents.get("preprocess_cfg", {}) if "model_cfg" in contents else {}
    preprocessing = {key: value for key, value in given.items() if key in PREPROCESSING}
    return Architecture(_register(path.stem, config), config, preprocessing)


def _register(stem: str, config: Mapping[str, Any]) -> str:
    """Make a configuration known to open_clip under a name that no other model has.

    open_clip goes by the file's name alone, and a `ViT-B-32.json` of a user's would replace the
    built-in one for the whole process.
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
        raise ConfigError(f"model.name: no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.name: {path} cannot be read as JSON: {error}") from None
    if not isinstance(contents, dict):
        raise ConfigError(f"model.name: {path} is no model configuration of open_clip")
    return contents


def _valid(config: Any, source: Path) -> dict[str, Any]:
    """The configuration, with keys that open_clip will take."""
    missing = [key for key in REQUIRED if not isinstance(config, dict) or key not in config]
    if missing:
        raise ConfigError(
            f"model.name: {source} is no model configuration of open_clip: "
            f"{missing[0]!r} is missing"
        )
    known = {
        "custom_text",
        *inspect.signature(open_clip.CLIP).parameters,
        *inspect.signature(open_clip.CoCa).parameters,
    }
    _check_keys(config, known, f"{source}: ")
    for tower, cls in (
        ("vision_cfg", open_clip.CLIPVisionCfg),
        ("text_cfg", open_clip.CLIPTextCfg),
    ):
        if not isinstance(config[tower], dict):
            raise ConfigError(f"model.name: {source}: {tower} = {config[tower]!r} is no mapping")
        _check_keys(config[tower], {f.name for f in dataclasses.fields(cls)}, f"{source}: {tower}.")
    trunk = config["vision_cfg"].get("timm_model_name")
    if trunk and ":" not in trunk and not timm.is_model(trunk.partition(".")[0]):
        raise ConfigError(
            f"model.name: {source}: vision_cfg.timm_model_name = {trunk!r} is unknown to timm "
            f"{timm.__version__}"
        )
    return dict(config)


def _check_keys(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key, value in config.items():
        if key not in known:
            raise ConfigError(
                f"model.name: {where}{key} = {value!r} is unknown to open_clip"
                f"{did_you_mean(key, known)}"
            )
