"""The image side of a model: which pixels it expects, and its pooled features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

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
    preprocess = cast(Any, clip).visual.preprocess_cfg
    for key, known in (
        ("resize_mode", ("shortest", "squash", "longest")),
        ("interpolation", ("bicubic", "bilinear")),
    ):
        if preprocess[key] not in known:
            raise ConfigError(
                f"{preprocess[key]!r} is not one of {', '.join(known)}",
                key=f"model.name: preprocess_cfg.{key}",
            )
    return ImageInput(
        size=square_side(preprocess["size"]),
        mean=cast(tuple[float, float, float], tuple(preprocess["mean"])),
        std=cast(tuple[float, float, float], tuple(preprocess["std"])),
        resize_mode=preprocess["resize_mode"],
        interpolation=preprocess["interpolation"],
    )


def square_side(size: int | list[int] | tuple[int, ...]) -> int:
    """The side of an image whose size open_clip writes as one number or as two.

    Raises:
        ConfigError: it is not square.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size,)
    if len(set(sides)) != 1:
        raise ConfigError(f"image_size = {list(sides)}: images must be square", key="model.name")
    return int(sides[0])


def pooled_features(visual: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Image features (B, D) of images (B, 3, H, W), projected but not normalised.

    CoCa's tower also returns the tokens of an image; they are left out.
    """
    output = visual(images)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
