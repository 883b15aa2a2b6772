"""The Hugging Face hub: files are looked up before a worker starts."""

from __future__ import annotations

from collections.abc import Sequence

import huggingface_hub
import open_clip

from trainers.errors import ConfigError, first_line

TIMEOUT = 20.0
"""Seconds until an unanswered request to the hub fails."""

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""File names that open_clip looks for by default."""


def check_repository(
    repository: str, files: Sequence[str], source: str, *, listed: bool = False
) -> None:
    """Raise a `ConfigError` unless a file is on this machine or the hub has the repository.

    Args:
        repository: such as `laion/CLIP-ViT-B-32-laion2B-s34B-b79K`.
        files: alternatives, one of which suffices.
        source: key and value for the message.
        listed: whether the repository must also contain one of the files.
    """
    try:
        cached = [huggingface_hub.try_to_load_from_cache(repository, file) for file in files]
        if any(isinstance(path, str) for path in cached):
            return
        found = huggingface_hub.HfApi().model_info(repository, timeout=TIMEOUT)
    except Exception as error:  # the hub's client raises errors of its HTTP library
        raise ConfigError(
            f"{repository} is not on this machine, and the Hugging Face hub does not provide it: "
            f"{first_line(error)}",
            source=source,
        ) from None
    names = {sibling.rfilename for sibling in found.siblings or ()}
    if listed and names.isdisjoint(files):
        raise ConfigError(f"{repository} has none of {', '.join(files)}", source=source)


def check_tag(name: str, tag: str) -> None:
    """Raise a `ConfigError` if the weights of a tag are neither cached nor on the hub."""
    location = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")
    repository, _, file = location.rpartition("/")
    if repository:
        safe = f"{file.rpartition('.')[0]}.safetensors"
        check_repository(
            repository, (file, safe) if file else WEIGHTS, f"model.pretrained = {tag!r}"
        )
