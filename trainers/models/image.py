"""The image side of a model: which pixels it expects, and its pooled features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn

from trainers.errors import ConfigError

ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class ImageInput:
    """What an image encoder expects of its pixels."""

    size: int
    """Side of the square image."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: ResizeMode = "shortest"
    """How evaluation makes an image square: crop from the short side, distort, or pad."""
    interpolation: Interpolation = "bicubic"


def image_input(clip: nn.Module) -> ImageInput:
    """The size, normalisation and resizing that open_clip recorded on the model."""
    recorded = cast(Any, clip).visual.preprocess_cfg
    for key, alias in (("resize_mode", ResizeMode), ("interpolation", Interpolation)):
        if recorded[key] not in get_args(alias):
            problem = f"{recorded[key]!r} is not one of {', '.join(get_args(alias))}"
            raise ConfigError(problem, key=f"model.name: preprocess_cfg.{key}")
    for key, least in (("mean", -1000), ("std", 0.001)):
        values = recorded[key] if isinstance(recorded[key], list | tuple) else ()
        numbers = [v for v in values if isinstance(v, int | float) and least <= v <= 1000]
        if not len(numbers) == len(values) == 3:
            problem = f"{recorded[key]!r} is not three numbers from {least} to 1000"
            raise ConfigError(problem, key=f"model.name: preprocess_cfg.{key}")
    sides = recorded["size"] if isinstance(recorded["size"], list | tuple) else [recorded["size"]]
    if len(set(sides)) != 1:
        raise ConfigError(f"image_size = {list(sides)}: images must be square", key="model.name")
    return ImageInput(
        size=int(sides[0]),
        mean=cast(tuple[float, float, float], tuple(recorded["mean"])),
        std=cast(tuple[float, float, float], tuple(recorded["std"])),
        resize_mode=recorded["resize_mode"],
        interpolation=recorded["interpolation"],
    )


def pooled_features(visual: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Image features (B, D) of images (B, 3, H, W), projected but not normalised.

    CoCa's tower also returns the tokens of an image; they are left out.
    """
    output = visual(images)
    return output[0] if isinstance(output, tuple) else output
