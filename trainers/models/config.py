"""The `model` section of the configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from trainers.config_model import Frozen

TINY_CLIP = "tiny-clip"
RANDOM = "random"
LOCAL_DIR = "local-dir:"
HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
"""Of a model in a folder or on the hub."""


class ModelConfig(Frozen):
    """Which zero-shot model is fine-tuned."""

    name: str = TINY_CLIP
    """`tiny-clip` (built in), a name that open_clip knows, such as `ViT-B-16-quickgelu`,
    `hf-hub:org/repo`, or `local-dir:/folder`."""
    pretrained: str | None = None
    """A pre-trained tag of open_clip, a checkpoint's path (`.safetensors`, or `.pt`, `.pth`, `.bin`
    with tensors only), or `random`; not given if the model brings its own weights."""

    @field_validator("name", "pretrained")
    @classmethod
    def _paths_are_absolute(cls, given: str | None) -> str | None:
        """Workers may run in another folder."""
        if given is None or not (given.startswith(LOCAL_DIR) or _is_path(given)):
            return given
        scheme, path = given[: len(LOCAL_DIR)], given.removeprefix(LOCAL_DIR)
        return f"{scheme if path != given else ''}{Path(path).expanduser().absolute()}"

    @property
    def paths(self) -> list[str]:
        """The files and folders that it names."""
        folder = [self.name.removeprefix(LOCAL_DIR)] if self.name.startswith(LOCAL_DIR) else []
        return folder + [path for path in [self.pretrained] if path is not None and _is_path(path)]

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

    @property
    def is_here(self) -> bool:
        """Whether its weights are on this machine in any case."""
        is_local = self.name == TINY_CLIP or self.name.startswith(LOCAL_DIR)
        return is_local or self.pretrained == RANDOM or bool(self.paths)


def _is_path(pretrained: str) -> bool:
    """Whether this is a checkpoint's path, not a tag."""
    return Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin")
