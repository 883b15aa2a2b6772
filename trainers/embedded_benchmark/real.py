"""The domain real: the drawing as a lit, rounded thing in a textured place, photographed."""

from dataclasses import replace
from typing import TypeAlias

import numpy as np

from trainers.embedded_benchmark.backdrop import backdrop
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
    resized,
    sampled,
    set_off,
)

_WARM, _COOL = (1.07, 1.0, 0.9), (0.92, 0.99, 1.1)


Light: TypeAlias = tuple[float, float, float]
"""A lamp: its direction in the image's plane (x right, y down) and its height."""


def real(item: Drawing, rng: Rng, size: int) -> Floats:
    """Return an image (size, size, 3) in [0, 1] of the drawing as in a photograph."""
    pose = random_pose(rng, scale=(0.66, 0.94), turn=10, shift=0.07)
    pose = replace(
        pose, y=pose.y + 0.02, stretch=rng.uniform(0.85, 1.12), lean_x=rng.uniform(-0.3, 0.3),
        lean_y=rng.uniform(-0.3, 0.3),
    )  # fmt: skip
    light = rng.uniform(-0.8, 0.8), rng.uniform(-0.9, -0.3), rng.uniform(0.5, 1.0)
    scene, horizon = backdrop(rng, size)
    colour, mask = _thing(item, rng, pose, size)
    lit = _lit(colour, mask, rng, light)
    scene = _shadowed(set_off(scene, lit, mask), mask, rng, light, horizon)
    reflected = scene.mean(axis=(0, 1))  # the place tints the thing a little
    lit = lit * (0.82 + 0.18 * reflected / max(float(reflected.mean()), 0.05))
    return _photographed(over(scene, lit, mask), rng)


def _thing(item: Drawing, rng: Rng, pose: Pose, size: int) -> tuple[Floats, Floats]:
    """Return colour and coverage of the unlit thing; contours are creases, not black lines."""
    palette = 0 if rng.random() < 0.5 else int(rng.integers(1, PALETTES))
    fill, mask = pixels(pose.apply(raster(item, "colour", 1, palette), size))
    line, line_mask = pixels(pose.apply(raster(item, "line", 1), size))
    fill = recoloured(
        fill,
        turn=rng.normal(0, 0.15),
        saturation=rng.uniform(0.5, 0.95),
        gain=rng.uniform(0.8, 1.05),
    )
    near = blurred(fill * mask[..., None], 1) / (blurred(mask, 1) + 1e-3)[..., None]
    crease = 0.3 * near + 0.08 + 0.25 * line
    fill = over(fill, crease, line_mask * np.float32(rng.uniform(0.65, 0.95)))
    grain = noise(rng, size, rng.uniform(6, 14), 2) * 0.06
    grain += noise(rng, size, (size / 2, 6) if rng.random() < 0.5 else size / 2) * 0.05
    return np.clip(fill * (1 + grain)[..., None], 0, 1), np.maximum(mask, line_mask)


def _lit(colour: Floats, mask: Floats, rng: Rng, light: Light) -> Floats:
    """Return the colour shaded as on a body that bulges towards the camera."""
    size = mask.shape[0]
    unit = size / 64
    height = 0.5 * blurred(mask, 2 * unit) + 0.9 * blurred(mask, 5 * unit)
    height = height * mask + 0.12 * colour.mean(axis=2)
    down, across = np.gradient(height.astype(np.float32))
    steep = rng.uniform(4.0, 7.0) * unit
    normal_x, normal_y = -across * steep, -down * steep
    length = np.sqrt(normal_x**2 + normal_y**2 + 1)
    towards = np.array(light) / np.linalg.norm(light)
    diffuse = (normal_x * towards[0] + normal_y * towards[1] + towards[2]) / length
    half = towards + np.array([0, 0, 1.0])
    half /= np.linalg.norm(half)
    gloss = (normal_x * half[0] + normal_y * half[1] + half[2]) / length
    ambient = rng.uniform(0.4, 0.6)
    shine = rng.uniform(0.0, 0.5) * np.clip(gloss, 0, 1) ** int(rng.integers(12, 40))
    x, y = grid(size)
    fall = 1 + 0.18 * ((x / size - 0.5) * light[0] + (y / size - 0.5) * light[1]) * 2
    shade = (ambient + (1.3 - ambient) * np.clip(diffuse, 0, 1)) * fall
    return colour * shade[..., None].astype(np.float32) + shine[..., None].astype(np.float32)


def _shadowed(scene: Floats, mask: Floats, rng: Rng, light: Light, horizon: float) -> Floats:
    """Cast the thing's shadow on the ground (lying flat) or on what is behind it."""
    size = mask.shape[0]
    x, y = grid(size)
    rows = np.flatnonzero(mask.max(axis=1) > 0.3)
    foot = float(rows[-1]) if len(rows) else size * 0.8
    if horizon > 0.05:
        squash = rng.uniform(2.2, 4.0)
        up = (foot - y) * squash
        slant = -light[0] * rng.uniform(0.6, 1.1)
        shape = sampled(mask, x - slant * (foot - y) * squash * 0.5, foot - np.abs(up))
        shape = np.where(y > foot + 2, 0, shape).astype(np.float32)
    else:
        away = rng.uniform(2, 5) * size / 64
        shape = sampled(mask, x + light[0] * away, y + light[1] * away)
    soft = blurred(shape, rng.uniform(1, 2.5) * size / 64)
    contact = blurred(mask, 1) * np.exp(-(((y - foot) / (3 * size / 64)) ** 2))
    dark = np.clip(soft * rng.uniform(0.4, 0.65) + 0.4 * contact, 0, 0.85)
    return scene * (1 - dark)[..., None].astype(np.float32)


def _photographed(image: Floats, rng: Rng) -> Floats:
    """Return the image as the camera gives it: lens, exposure, white balance, sensor."""
    size = image.shape[0]
    softness = rng.uniform(0.0, 0.55)
    image = image + (blurred(image, size / 64) - image) * np.float32(softness)
    x, y = grid(size)
    radius = ((x / size - 0.5) ** 2 + (y / size - 0.5) ** 2) * 2
    image = image * (1 - rng.uniform(0.1, 0.5) * radius)[..., None].astype(np.float32)
    mix = rng.random()
    cast = np.array([mix * w + (1 - mix) * c for w, c in zip(_WARM, _COOL, strict=True)])
    image = image * (cast * rng.uniform(0.8, 1.12)).astype(np.float32)
    image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.85, 1.2))
    amount = np.float32(rng.uniform(0.012, 0.04))
    fine = rng.standard_normal((size, size), dtype=np.float32)
    blotch = resized(rng.standard_normal((size // 2, size // 2), dtype=np.float32), size)
    tint = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(0.5)
    return image + amount * ((fine + 0.7 * blotch)[..., None] + tint)
