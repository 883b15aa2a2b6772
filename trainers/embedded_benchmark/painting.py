"""The domain painting: shapes without outlines in brush strokes on canvas."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from trainers.embedded_benchmark.drawings import Drawing
from trainers.embedded_benchmark.raster import (
    PALETTES,
    Floats,
    Pose,
    Rng,
    blurred,
    grid,
    noise,
    over,
    pixels,
    random_pose,
    raster,
    recoloured,
    rgb,
    set_off,
    to_bytes,
)


def painting(item: Drawing, rng: Rng, size: int) -> Floats:
    """Return an image (size, size, 3) in [0, 1] of the drawing as a painting."""
    pose = random_pose(rng, scale=(0.85, 1.12), turn=12, shift=0.05)
    ground = _ground(rng, size)
    motif, mask = _motif(item, rng, pose, size)
    under = over(set_off(ground, motif, mask), motif, mask)
    painted = _brushed(under, mask, rng)
    # Some of the under-painting shows through, which keeps small parts readable.
    clear = np.float32(rng.uniform(0.2, 0.5)) * blurred(mask, 1)
    image = painted + (under - painted) * clear[..., None]
    return _on_canvas(image, rng)


def _ground(rng: Rng, size: int) -> Floats:
    """Return a background of two or three related, rather dull colours in soft areas."""
    hue = rng.random()
    value = rng.uniform(0.35, 0.9)
    first = rgb(hue, rng.uniform(0.15, 0.6), value)
    second = rgb(hue + rng.normal(0, 0.12), rng.uniform(0.2, 0.7), value * rng.uniform(0.6, 1))
    third = rgb(hue + rng.uniform(0.3, 0.7), 0.35, value)
    areas = noise(rng, size, (3, 2), 2)
    if rng.random() < 0.5:  # a horizon
        _, y = grid(size)
        areas = 0.4 * areas + (y / size - rng.uniform(0.45, 0.75)) * 8
    weight = 1 / (1 + np.exp(-2 * areas))
    image = first + (second - first) * weight[..., None]
    spots = np.clip(noise(rng, size, 5) - 1.0, 0, 1)
    return over(image.astype(np.float32), third, spots * 0.7)


@lru_cache(maxsize=512)
def _details(item: Drawing) -> tuple[Image.Image, Image.Image]:
    """Return masks of the outlines well inside the colours, and of those well outside them.

    The border of a shape is neither: a painting sets areas against each other without contour.
    """
    lines = raster(item, "line", 1).getchannel("A")
    fill = raster(item, "colour").getchannel("A")
    inner = ImageChops.multiply(lines, fill.filter(ImageFilter.MinFilter(5)))
    beyond = ImageChops.invert(fill.filter(ImageFilter.MaxFilter(5)))
    return inner, ImageChops.multiply(lines, beyond)


def _motif(item: Drawing, rng: Rng, pose: Pose, size: int) -> tuple[Floats, Floats]:
    palette = int(rng.integers(PALETTES))
    fill, mask = pixels(pose.apply(raster(item, "colour", 1, palette), size))
    inner, outer = (_mask(image, pose, size) for image in _details(item))
    fill = recoloured(
        fill,
        turn=rng.normal(0, 0.25),
        saturation=rng.uniform(0.6, 1.2),
        gain=rng.uniform(0.75, 1.0),
    )
    light = noise(rng, size, 3) * 0.12 * mask
    fill = np.clip(fill * (1 + light)[..., None] + 0.03, 0, 1)
    shade = rgb(rng.random(), 0.5, rng.uniform(0.22, 0.4))
    fill = over(fill, 0.35 * fill + 0.25 * shade, 0.9 * inner)
    total = np.maximum(mask, outer)
    colour = over(fill, shade, np.clip(outer - mask, 0, 1))
    return colour, total


def _mask(image: Image.Image, pose: Pose, size: int) -> Floats:
    return np.asarray(pose.apply(image, size), dtype=np.float32) * np.float32(1 / 255)


def _brushed(image: Floats, mask: Floats, rng: Rng) -> Floats:
    """Repaint the image with strokes: broad ones everywhere, finer ones on the motif."""
    size = image.shape[0]
    twice = 2 * size
    canvas = Image.fromarray(to_bytes(image)).resize((twice, twice))
    draw = ImageDraw.Draw(canvas)
    flow = noise(rng, size, 3) * 0.7 + rng.uniform(0, math.pi)
    # Strokes run along edges of the motif, elsewhere with the flow.
    soft = blurred(mask, 2)
    down, across = np.gradient(soft)
    edge = np.hypot(down, across) > 0.04
    angle = np.where(edge, np.arctan2(across, -down), flow)
    unit = size / 64
    _strokes(draw, image, angle, rng, count=110, length=9 * unit, width=4 * unit, spread=0.07,
             among=mask < 0.5)  # fmt: skip
    width = rng.uniform(1.6, 2.6) * unit
    _strokes(draw, image, angle, rng, count=260, length=4.5 * unit, width=width, spread=0.06,
             among=mask > 0.3)  # fmt: skip
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) * np.float32(1 / 255)


def _strokes(
    draw: ImageDraw.ImageDraw, image: Floats, angle: Floats, rng: Rng, *, count: int,
    length: float, width: float, spread: float, among: np.ndarray,
) -> None:  # fmt: skip
    """Draw strokes in the colours of the image on a canvas of twice its size."""
    places = np.flatnonzero(among)
    if not len(places):
        return
    size = image.shape[0]
    y, x = np.divmod(rng.choice(places, count), size)
    turn = angle[y, x] + rng.normal(0, 0.2, count)
    half = length * rng.uniform(0.6, 1.3, count)
    dx, dy = np.cos(turn) * half, np.sin(turn) * half
    shade = image[y, x] * (1 + rng.normal(0, spread * 1.6, (count, 1)))
    paint = to_bytes(shade + rng.normal(0, spread / 2, (count, 3)))
    ends = np.stack([2 * x - dx, 2 * y - dy, 2 * x + dx, 2 * y + dy], 1).tolist()
    for line, colour in zip(ends, paint.tolist(), strict=True):
        draw.line(line, tuple(colour), round(2 * width))


def _on_canvas(image: Floats, rng: Rng) -> Floats:
    """Return the image with the weave of a canvas and the ridges of the paint."""
    size = image.shape[0]
    x, y = grid(size)
    period = rng.uniform(2.2, 3.2)
    weave = np.cos(x * 2 * math.pi / period) * np.cos(y * 2 * math.pi / period)
    ridges = noise(rng, size, (size / 1.5, size / 4) if rng.random() < 0.5 else size / 2)
    strength = rng.uniform(0.015, 0.05)
    texture = 1 + strength * weave + 0.02 * ridges
    return image * texture[..., None].astype(np.float32)
