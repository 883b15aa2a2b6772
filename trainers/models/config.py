"""The `model` section of the configuration."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, field_validator

from trainers.config_model import Frozen

TINY_CLIP = "tiny-clip"
RANDOM = "random"
LOCAL_DIR = "local-dir:"
HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
"""Of a model in a folder or on the hub."""
DEFAULT_CONTEXT_LENGTH = 77
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin")
"""File name endings of checkpoints."""


def _absolute(path: str) -> str:
    """An absolute path, as workers may run in another folder."""
    return str(Path(path).expanduser().absolute())


class ModelConfig(Frozen):
    """Which zero-shot model is fine-tuned."""

    name: str = TINY_CLIP
    """`tiny-clip` (embedded), a name that open_clip knows, such as `ViT-B-16-quickgelu`,
    `hf-hub:org/repo`, `local-dir:/folder`, or the path of a model configuration `.json`."""
    pretrained: str | None = None
    """A pre-trained tag of open_clip, a checkpoint's path (`.safetensors`, or `.pt`, `.pth`, `.bin`
    with tensors only), or `random`; not given if the model brings its own weights."""

    tokenizer: Annotated[str, AfterValidator(_absolute)] | None = None
    """The model's own vocabulary, if it is not the one that open_clip would take: a byte-pair
    merges file (`.txt.gz` or `.txt`), or a Hugging Face `tokenizer.json`."""
    trust_remote_code: bool = False
    """Whether Python code of a Hugging Face tokenizer may run, from the model's folder or
    repository. Read that code first."""

    @field_validator("name")
    @classmethod
    def _paths_are_absolute(cls, name: str) -> str:
        if name.startswith(LOCAL_DIR) and name != LOCAL_DIR:
            return LOCAL_DIR + _absolute(name.removeprefix(LOCAL_DIR))
        return _absolute(name) if name.endswith(".json") else name

    @field_validator("pretrained")
    @classmethod
    def _checkpoint_is_absolute(cls, pretrained: str | None) -> str | None:
        if pretrained is not None and is_path(pretrained):
            return _absolute(pretrained)
        return pretrained

    @property
    def longest_text(self) -> int | None:
        """Ordinary tokens of the longest text, by the model's configuration file.

        None if there is no such file on this machine; others report what is wrong with it. It is
        read without open_clip, whose import takes seconds.
        """
        name, packages = self.name, find_spec("open_clip")
        path = Path(name)
        if name == TINY_CLIP:
            path = Path(__file__).parent / "tiny_clip" / CONFIG
        elif name.startswith(LOCAL_DIR):
            path = Path(name.removeprefix(LOCAL_DIR)) / CONFIG
        elif not name.endswith(".json") and packages is not None and packages.origin is not None:
            path = Path(packages.origin).parent / "model_configs" / f"{name}.json"
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
            text = contents.get("model_cfg", contents)["text_cfg"]
            return int(text.get("context_length") or DEFAULT_CONTEXT_LENGTH) - 2
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    @property
    def paths(self) -> list[str]:
        """The files and folders that it names."""
        named = [self.tokenizer] if self.tokenizer else []
        if self.name.startswith(LOCAL_DIR) or self.name.endswith(".json"):
            named.append(self.name.removeprefix(LOCAL_DIR))
        if self.pretrained and is_path(self.pretrained):
            named.append(self.pretrained)
        return named

    @property
    def files(self) -> list[Path]:
        """The files on this machine that it names, and those in the folder that it names."""
        named = [Path(path) for path in self.paths]
        found = [path for path in named if path.is_file()]
        for folder in named:
            for file in folder.rglob("*"):  # hidden ones are of git and of the hub's downloads
                is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
                found += [file] if file.is_file() and not is_hidden else []
        return sorted(found)

    @property
    def brings_its_weights(self) -> bool:
        """Whether the name alone determines the weights."""
        return self.name == TINY_CLIP or self.name.startswith((LOCAL_DIR, HUB))


def is_path(pretrained: str) -> bool:
    """Whether this is a checkpoint's path, not a tag."""
    return "/" in pretrained or pretrained.endswith(CHECKPOINTS)
