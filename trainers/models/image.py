"""The image side, asked of the model: what pixels it wants, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    mode, interpolation = preprocess["resize_mode"], preprocess["interpolation"]
    if mode not in ("shortest", "squash", "longest") or interpolation not in (
        "bicubic",
        "bilinear",
    ):
        raise ConfigError(
            f"model.name: preprocess_cfg with resize_mode = {mode!r}, interpolation = "
            f"{interpolation!r}: known are shortest, squash, longest, and bicubic, bilinear"
        )
    return ImageInput(
        size=square_side(preprocess["size"]),
        mean=cast(tuple[float, float, float], tuple(preprocess["mean"])),
        std=cast(tuple[float, float, float], tuple(preprocess["std"])),
        resize_mode=mode,
        interpolation=interpolation,
    )


def square_side(size: int | list[int] | tuple[int, ...]) -> int:
    """The side of an image whose size open_clip writes as one number or as two.

    Raises:
        ConfigError: it is no square.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size,)
    if len(set(sides)) != 1:
        raise ConfigError(f"model.name: image_size = {list(sides)}: images must be square")
    return int(sides[0])


def check_square(vision: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for the configuration of an image tower with other than squares."""
    square_side(vision.get("image_size", 224))


def pooled_features(visual: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Image features (B, D) of images (B, 3, H, W), projected but not normalised.

    CoCa's tower returns the tokens of an image beside its feature; they are left out.
    """
    output = visual(images)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
