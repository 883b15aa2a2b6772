"""The domain painting: shapes without outlines in brush strokes on canvas."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng, X, Y
from trainers.embedded_benchmark.colours import over, recoloured, rgb, set_off, to_bytes
from trainers.embedded_benchmark.drawings import PALETTES, raster
from trainers.embedded_benchmark.planes import blurred, noise
from trainers.embedded_benchmark.pose import Pose, random_pose


def painting(code_point: str, rng: Rng) -> Floats:
    """An image of the drawing as a painting."""
    pose = random_pose(rng, scale=(0.85, 1.12), turn=12, shift=0.05)
    ground = _ground(rng)
    motif, mask = _motif(code_point, rng, pose)
    under = over(set_off(ground, motif, mask), motif, mask)
    painted = _brushed(under, mask, rng)
    # Some of the under-painting shows through, which keeps small parts readable.
    clear = np.float32(rng.uniform(0.2, 0.5)) * blurred(mask, 1)
    return _on_canvas(over(painted, under, clear), rng)


def _ground(rng: Rng) -> Floats:
    """A background of two or three related, rather dull colours in soft areas."""
    hue = rng.random()
    value = rng.uniform(0.35, 0.9)
    first = rgb(hue, rng.uniform(0.15, 0.6), value)
    second = rgb(hue + rng.normal(0, 0.12), rng.uniform(0.2, 0.7), value * rng.uniform(0.6, 1))
    third = rgb(hue + rng.uniform(0.3, 0.7), 0.35, value)
    areas = noise(rng, (3, 2), 2)
    if rng.random() < 0.5:  # a horizon
        areas = 0.4 * areas + (Y / SIZE - rng.uniform(0.45, 0.75)) * 8
    image = over(first, second, 1 / (1 + np.exp(-2 * areas)))
    spots = np.clip(noise(rng, 5) - 1.0, 0, 1)
    return over(image.astype(np.float32), third, spots * 0.7)


@lru_cache(maxsize=512)
def _details(code_point: str) -> tuple[Image.Image, Image.Image]:
    """Masks of the outlines well inside the colours, and of those well outside them.

    The border of a shape is neither: a painting sets areas against each other without contour.
    """
    lines = raster(code_point, "line").getchannel("A")
    fill = raster(code_point, "colour").getchannel("A")
    inner = ImageChops.multiply(lines, fill.filter(ImageFilter.MinFilter(5)))
    beyond = ImageChops.invert(fill.filter(ImageFilter.MaxFilter(5)))
    return inner, ImageChops.multiply(lines, beyond)


def _motif(code_point: str, rng: Rng, pose: Pose) -> tuple[Floats, Floats]:
    fill, mask = pose.layer(code_point, "colour", 1, int(rng.integers(PALETTES)))
    inner, outer = (
        np.asarray(pose.apply(image), dtype=np.float32) * np.float32(1 / 255)
        for image in _details(code_point)
    )
    fill = recoloured(fill, rng, turn=0.25, saturation=(0.6, 1.2), gain=(0.75, 1.0))
    light = noise(rng, 3) * 0.12 * mask
    fill = np.clip(fill * (1 + light)[..., None] + 0.03, 0, 1)
    shade = rgb(rng.random(), 0.5, rng.uniform(0.22, 0.4))
    fill = over(fill, 0.35 * fill + 0.25 * shade, 0.9 * inner)
    return over(fill, shade, np.clip(outer - mask, 0, 1)), np.maximum(mask, outer)


def _brushed(image: Floats, mask: Floats, rng: Rng) -> Floats:
    """Repaint the image with strokes: broad ones everywhere, finer ones on the motif."""
    canvas = Image.fromarray(to_bytes(image)).resize((2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(canvas)
    flow = noise(rng, 3) * 0.7 + rng.uniform(0, math.pi)
    # Strokes run along edges of the motif, elsewhere with the flow.
    down, across = np.gradient(blurred(mask, 2))
    angle = np.where(np.hypot(down, across) > 0.04, np.arctan2(across, -down), flow)
    _strokes(draw, image, angle, rng, count=110, length=9, width=4, spread=0.07, among=mask < 0.5)
    width = rng.uniform(1.6, 2.6)
    _strokes(draw, image, angle, rng, count=260, length=4.5, width=width, spread=0.06,
             among=mask > 0.3)  # fmt: skip
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) * np.float32(1 / 255)


def _strokes(
    draw: ImageDraw.ImageDraw, image: Floats, angle: Floats, rng: Rng, *, count: int,
    length: float, width: float, spread: float, among: np.ndarray,
) -> None:  # fmt: skip
    """Draw strokes in the colours of the image on a canvas of twice its size."""
    places = np.flatnonzero(among)
    if not len(places):
        return
    y, x = np.divmod(rng.choice(places, count), SIZE)
    turn = angle[y, x] + rng.normal(0, 0.2, count)
    half = length * rng.uniform(0.6, 1.3, count)
    dx, dy = np.cos(turn) * half, np.sin(turn) * half
    shade = image[y, x] * (1 + rng.normal(0, spread * 1.6, (count, 1)))
    paint = to_bytes(shade + rng.normal(0, spread / 2, (count, 3)))
    ends = np.stack([2 * x - dx, 2 * y - dy, 2 * x + dx, 2 * y + dy], 1).tolist()
    for line, colour in zip(ends, paint.tolist(), strict=True):
        draw.line(line, tuple(colour), round(2 * width))


def _on_canvas(image: Floats, rng: Rng) -> Floats:
    """The image with the weave of a canvas and the ridges of the paint."""
    period = rng.uniform(2.2, 3.2)
    weave = np.cos(X * 2 * math.pi / period) * np.cos(Y * 2 * math.pi / period)
    ridges = noise(rng, (SIZE / 1.5, SIZE / 4) if rng.random() < 0.5 else SIZE / 2)
    texture = 1 + rng.uniform(0.015, 0.05) * weave + 0.02 * ridges
    return image * texture[..., None].astype(np.float32)
