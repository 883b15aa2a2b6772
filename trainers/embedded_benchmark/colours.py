"""Colours: painting over, changing and making them."""

import math

import numpy as np
import numpy.typing as npt

from trainers.embedded_benchmark.arrays import Floats, Rng


def over(base: Floats, colour: Floats, coverage: Floats) -> Floats:
    """Paint a colour (image or one rgb triple) on a base where the mask covers it."""
    return base + (colour - base) * coverage[..., None]


def set_off(ground: Floats, motif: Floats, mask: Floats) -> Floats:
    """The ground made darker or lighter where the motif's colour would drown in it."""
    weight = mask / max(float(mask.sum()), 1.0)
    mean = np.einsum("hwc,hw->c", motif, weight)
    behind = np.einsum("hwc,hw->c", ground, weight)
    missing = 0.32 - float(np.abs(mean - behind).mean())
    if missing <= 0:
        return ground
    factor = 1 - 1.7 * missing
    if float(mean.mean()) > 0.42:
        return ground * factor
    return 1 - (1 - ground) * factor


def recoloured(
    image: Floats, rng: Rng, *, turn: float, saturation: tuple[float, float],
    gain: tuple[float, float],
) -> Floats:  # fmt: skip
    """The image with its hue rotated and its saturation and brightness scaled.

    turn: spread of the rotation in radians. saturation, gain: least and greatest factor.
    """
    angle, chroma, factor = rng.normal(0, turn), rng.uniform(*saturation), rng.uniform(*gain)
    cos, sin = math.cos(angle), math.sin(angle)
    third, root = 1 / 3, math.sqrt(1 / 3)
    axis = np.full((3, 3), third)
    cross = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    rotation = axis + cos * chroma * (np.eye(3) - axis) + sin * chroma * cross
    return image @ (factor * rotation.T).astype(np.float32)


def rgb(h: float, s: float, v: float) -> Floats:
    """The colour of hue (turns), saturation and value as an rgb triple."""
    h6 = (h % 1.0) * 6
    triple = [v - v * s * max(0.0, min(k, 4 - k, 1.0)) for k in ((n + h6) % 6 for n in (5, 3, 1))]
    return np.array(triple, np.float32)


def to_bytes(image: Floats) -> npt.NDArray[np.uint8]:
    """The image as uint8, clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
