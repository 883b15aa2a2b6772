"""Drawings as pixels: rasterising, placing under a pose, noise, colour changes.

Images are float32 arrays with values in [0, 1], shaped (height, width, 3); coverage masks are
(height, width). Rasters of drawings are RGBA images of ``RASTER`` pixels a side, cached because
one drawing is rendered many times in a row.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

from trainers.embedded_benchmark.drawings import (
    Drawing,
    Layer,
    colours,
    layered_svg,
    shifted_palette,
)

RASTER = 96  # pixels a side
STROKES = (0.6, 1.0, 1.5)  # factors on the stroke width that are rasterised
PALETTES = 5  # number of colourings of a drawing; number 0 is OpenMoji's own

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Rng: TypeAlias = np.random.Generator


def generator(*key: int) -> Rng:
    """Return the random generator of a key of non-negative integers, alike everywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@lru_cache(maxsize=2048)
def raster(item: Drawing, layer: Layer, stroke: int = 1, palette: int = 0) -> Image.Image:
    """Return a layer of a drawing as RGBA image of RASTER pixels a side; do not change it.

    stroke: index into STROKES. palette: number of the colouring, below PALETTES.
    """
    mapping = None
    if palette:
        rng = generator(int(item.code_point, 16), palette)
        mapping = shifted_palette(colours(item), rng, hue=0.5, saturation=0.5, light=0.16)
    svg = layered_svg(item, layer, palette=mapping, stroke_scale=STROKES[stroke])
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER, height=RASTER, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


@dataclass(frozen=True)
class Pose:
    """How a drawing lies in an image of side 1: its side, centre, turn and foreshortening.

    scale: side of the drawing relative to the image's; x, y: centre of the drawing;
    angle: radians; flip: mirrored; stretch: width over height; lean_x, lean_y: strength of the
    perspective, 0 for none, at most about 0.3.
    """

    scale: float
    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0
    flip: bool = False
    stretch: float = 1.0
    lean_x: float = 0.0
    lean_y: float = 0.0

    def apply(self, image: Image.Image, size: int) -> Image.Image:
        """Return the image under this pose on a transparent canvas of size x size pixels."""
        side = max(8, round(self.scale * size))
        if side < image.width:  # shrink with a proper filter first: transform() only samples
            image = image.resize((side, side), Image.Resampling.BOX, reducing_gap=None)
        ratio = image.width / (self.scale * size)
        cos, sin = math.cos(self.angle) * ratio, math.sin(self.angle) * ratio
        across = (-1.0 if self.flip else 1.0) / self.stretch
        a, b, d, e = cos * across, sin * across, -sin, cos
        half = image.width / 2
        g, h = self.lean_x / (self.scale * size), self.lean_y / (self.scale * size)
        centre_x, centre_y = self.x * size, self.y * size
        one = 1.0 - g * centre_x - h * centre_y
        c = -a * centre_x - b * centre_y
        f = -d * centre_x - e * centre_y
        # The centre of the source is added through the homogeneous coordinate.
        to_x = (a + half * g, b + half * h, c + half * one)
        to_y = (d + half * g, e + half * h, f + half * one)
        data = tuple(value / one for value in (*to_x, *to_y, g, h))
        return image.transform(
            (size, size), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR
        )


def random_pose(rng: Rng, *, scale: tuple[float, float], turn: float, shift: float) -> Pose:
    """Return a pose near the centre; turn: largest angle in degrees, shift: of the side."""
    return Pose(
        scale=rng.uniform(*scale),
        x=float(0.5 + rng.uniform(-shift, shift)),
        y=float(0.5 + rng.uniform(-shift, shift)),
        angle=math.radians(rng.uniform(-turn, turn)),
        flip=rng.random() < 0.5,
        stretch=rng.uniform(0.92, 1.08),
    )


def pixels(image: Image.Image) -> tuple[Floats, Floats]:
    """Return colour (h, w, 3) and coverage (h, w) of an RGBA image, both in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    return array[..., :3], array[..., 3]


def over(base: Floats, colour: Floats, coverage: Floats) -> Floats:
    """Paint a colour (image or one rgb triple) on a base where the mask covers it."""
    return base + (colour - base) * coverage[..., None]


def set_off(ground: Floats, motif: Floats, mask: Floats) -> Floats:
    """Return the ground made darker or lighter where the motif's colour would drown in it."""
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


def to_bytes(image: Floats) -> npt.NDArray[np.uint8]:
    """Return the image as uint8, clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def resized(plane: Floats, size: int) -> Floats:
    """Return a float plane (h, w) scaled smoothly to `size` pixels a side."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def noise(rng: Rng, size: int, cells: float | tuple[float, float], octaves: int = 1) -> Floats:
    """Return smooth noise (size, size) of mean 0 and spread about 1.

    cells: number of bumps across the image, or (down, across); each further octave doubles
    them at half the height.
    """
    down, across = cells if isinstance(cells, tuple) else (cells, cells)
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        shape = tuple(int(min(size, max(2, round(n * 2**octave)))) for n in (down, across))
        grid = rng.standard_normal(shape, dtype=np.float32)
        plane = grid if shape == (size, size) else resized(grid, size)
        total += plane * np.float32(1.4 * 0.5**octave)
    return total


@lru_cache(maxsize=32)
def _blur_matrix(length: int, radius: float) -> Floats:
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    weight = np.exp(-0.5 * (distance / radius) ** 2)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def blurred(plane: Floats, radius: float) -> Floats:
    """Return a plane (h, w) or image (h, w, c) after a Gaussian blur; radius in pixels."""
    if radius <= 0:
        return plane
    # At these sizes two products with a banded matrix beat any sliding window in numpy.
    down = _blur_matrix(plane.shape[0], radius)
    across = _blur_matrix(plane.shape[1], radius)
    if plane.ndim == 2:
        return down @ plane @ across.T
    return np.moveaxis(down @ np.moveaxis(plane, 2, 0) @ across.T, 0, 2)


def sampled(plane: Floats, x: Floats, y: Floats) -> Floats:
    """Return the plane (h, w) or image (h, w, c) read bilinearly at pixel positions (x, y)."""
    height, width = plane.shape[:2]
    x = np.clip(x, 0, width - 1.001)
    y = np.clip(y, 0, height - 1.001)
    left, top = x.astype(np.intp), y.astype(np.intp)
    fx, fy = (x - left).astype(np.float32), (y - top).astype(np.float32)
    if plane.ndim == 3:
        fx, fy = fx[..., None], fy[..., None]
    upper = plane[top, left] * (1 - fx) + plane[top, left + 1] * fx
    lower = plane[top + 1, left] * (1 - fx) + plane[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Floats, Floats]:
    """Return the pixel positions (x, y), each (size, size); do not change them."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return x, y


def recoloured(image: Floats, *, turn: float, saturation: float, gain: float) -> Floats:
    """Return the image (..., 3) with its hue rotated (radians) and saturation, gain scaled."""
    cos, sin = math.cos(turn), math.sin(turn)
    third, root = 1 / 3, math.sqrt(1 / 3)
    axis = np.full((3, 3), third)
    cross = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    rotation = axis + cos * saturation * (np.eye(3) - axis) + sin * saturation * cross
    return image @ (gain * rotation.T).astype(np.float32)


def rgb(h: float, s: float, v: float) -> Floats:
    """Return the colour of hue (turns), saturation and value as an rgb triple."""
    h6 = (h % 1.0) * 6
    triple = [v - v * s * max(0.0, min(k, 4 - k, 1.0)) for k in ((n + h6) % 6 for n in (5, 3, 1))]
    return np.array(triple, np.float32)
