"""The Hugging Face hub: what is there is looked up before a worker starts, and fetched once."""

from __future__ import annotations

from collections.abc import Sequence

import huggingface_hub
import open_clip
import platformdirs
from filelock import FileLock

from trainers.errors import ConfigError, first_line

TIMEOUT = 20.0
"""Seconds that the hub may take to answer."""

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Under the names that open_clip looks for, where it is told none."""


def check_repository(
    repository: str, files: Sequence[str], source: str, *, listed: bool = False
) -> None:
    """Raise a `ConfigError` unless a file is on this machine or the hub has the repository.

    Args:
        repository: such as `laion/CLIP-ViT-B-32-laion2B-s34B-b79K`.
        files: any of which would do.
        source: names key and value in the message.
        listed: whether one of the files must be there, too.
    """
    try:
        cached = [huggingface_hub.try_to_load_from_cache(repository, file) for file in files]
        if any(isinstance(path, str) for path in cached):
            return
        found = huggingface_hub.HfApi().model_info(repository, timeout=TIMEOUT)
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise ConfigError(
            f"{source}: {repository} is neither on this machine nor to be had from the Hugging "
            f"Face hub: {first_line(error)}"
        ) from None
    names = {sibling.rfilename for sibling in found.siblings or ()}
    if listed and names.isdisjoint(files):
        raise ConfigError(f"{source}: {repository} has none of {', '.join(files)}")


def check_tag(name: str, tag: str) -> None:
    """Raise a `ConfigError` where a tag's weights are neither cached nor to be had."""
    location = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")
    repository, _, file = location.rpartition("/")
    if repository:
        safe = f"{file.rpartition('.')[0]}.safetensors"
        check_repository(
            repository, (file, safe) if file else WEIGHTS, f"model.pretrained = {tag!r}"
        )


def fetch_weights(name: str, tag: str) -> None:
    """Bring a tag's weights onto this machine, once for all trials that start together.

    Raises:
        ConfigError: they cannot be had.
    """
    folder = platformdirs.user_cache_path("lipsum-tune")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "download.lock"):
        check_tag(name, tag)
        try:
            open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"model.pretrained = {tag!r}: the weights could not be fetched: {first_line(error)}"
            ) from None
