"""The domain real: the drawing as a lit, rounded thing in a textured place, photographed."""

from dataclasses import replace
from typing import TypeAlias

import numpy as np

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng, X, Y
from trainers.embedded_benchmark.backdrop import backdrop
from trainers.embedded_benchmark.colours import over, recoloured, set_off
from trainers.embedded_benchmark.drawings import PALETTES
from trainers.embedded_benchmark.planes import blurred, noise, resized, sampled
from trainers.embedded_benchmark.pose import Pose, random_pose

_WARM, _COOL = (1.07, 1.0, 0.9), (0.92, 0.99, 1.1)

Light: TypeAlias = tuple[float, float, float]
"""A lamp: its direction in the image's plane (x right, y down) and its height."""


def real(code_point: str, rng: Rng) -> Floats:
    """An image of the drawing as in a photograph."""
    pose = random_pose(rng, scale=(0.66, 0.94), turn=10, shift=0.07)
    pose = replace(
        pose, y=pose.y + 0.02, stretch=rng.uniform(0.85, 1.12), lean_x=rng.uniform(-0.3, 0.3),
        lean_y=rng.uniform(-0.3, 0.3),
    )  # fmt: skip
    light = rng.uniform(-0.8, 0.8), rng.uniform(-0.9, -0.3), rng.uniform(0.5, 1.0)
    scene, horizon = backdrop(rng)
    colour, mask = _thing(code_point, rng, pose)
    lit = _lit(colour, mask, rng, light)
    scene = _shadowed(set_off(scene, lit, mask), mask, rng, light, horizon)
    reflected = scene.mean(axis=(0, 1))  # the place tints the thing a little
    lit = lit * (0.82 + 0.18 * reflected / max(float(reflected.mean()), 0.05))
    return _photographed(over(scene, lit, mask), rng)


def _thing(code_point: str, rng: Rng, pose: Pose) -> tuple[Floats, Floats]:
    """Colour and coverage of the unlit thing; contours are creases, not black lines."""
    palette = 0 if rng.random() < 0.5 else int(rng.integers(1, PALETTES))
    fill, mask = pose.layer(code_point, "colour", 1, palette)
    line, line_mask = pose.layer(code_point, "line", 1)
    fill = recoloured(fill, rng, turn=0.15, saturation=(0.5, 0.95), gain=(0.8, 1.05))
    near = blurred(fill * mask[..., None], 1) / (blurred(mask, 1) + 1e-3)[..., None]
    crease = 0.3 * near + 0.08 + 0.25 * line
    fill = over(fill, crease, line_mask * np.float32(rng.uniform(0.65, 0.95)))
    grain = noise(rng, rng.uniform(6, 14), 2) * 0.06
    grain += noise(rng, (SIZE / 2, 6) if rng.random() < 0.5 else SIZE / 2) * 0.05
    return np.clip(fill * (1 + grain)[..., None], 0, 1), np.maximum(mask, line_mask)


def _lit(colour: Floats, mask: Floats, rng: Rng, light: Light) -> Floats:
    """The colour shaded as on a body that bulges towards the camera."""
    height = 0.5 * blurred(mask, 2) + 0.9 * blurred(mask, 5)
    height = height * mask + 0.12 * colour.mean(axis=2)
    down, across = np.gradient(height.astype(np.float32))
    steep = rng.uniform(4.0, 7.0)
    normal_x, normal_y = -across * steep, -down * steep
    length = np.sqrt(normal_x**2 + normal_y**2 + 1)
    towards = np.array(light) / np.linalg.norm(light)
    diffuse = (normal_x * towards[0] + normal_y * towards[1] + towards[2]) / length
    half = towards + np.array([0, 0, 1.0])
    half /= np.linalg.norm(half)
    gloss = (normal_x * half[0] + normal_y * half[1] + half[2]) / length
    ambient = rng.uniform(0.4, 0.6)
    shine = rng.uniform(0.0, 0.5) * np.clip(gloss, 0, 1) ** int(rng.integers(12, 40))
    fall = 1 + 0.18 * ((X / SIZE - 0.5) * light[0] + (Y / SIZE - 0.5) * light[1]) * 2
    shade = (ambient + (1.3 - ambient) * np.clip(diffuse, 0, 1)) * fall
    return colour * shade[..., None].astype(np.float32) + shine[..., None].astype(np.float32)


def _shadowed(scene: Floats, mask: Floats, rng: Rng, light: Light, horizon: float) -> Floats:
    """Cast the thing's shadow on the ground (lying flat) or on what is behind it."""
    rows = np.flatnonzero(mask.max(axis=1) > 0.3)
    foot = float(rows[-1]) if len(rows) else SIZE * 0.8
    if horizon > 0.05:
        squash = rng.uniform(2.2, 4.0)
        up = (foot - Y) * squash
        slant = -light[0] * rng.uniform(0.6, 1.1)
        shape = sampled(mask, X - slant * (foot - Y) * squash * 0.5, foot - np.abs(up))
        shape = np.where(foot + 2 < Y, 0, shape).astype(np.float32)
    else:
        away = rng.uniform(2, 5)
        shape = sampled(mask, X + light[0] * away, Y + light[1] * away)
    soft = blurred(shape, rng.uniform(1, 2.5))
    contact = blurred(mask, 1) * np.exp(-(((Y - foot) / 3) ** 2))
    dark = np.clip(soft * rng.uniform(0.4, 0.65) + 0.4 * contact, 0, 0.85)
    return scene * (1 - dark)[..., None].astype(np.float32)


def _photographed(image: Floats, rng: Rng) -> Floats:
    """The image as the camera gives it: lens, exposure, white balance, sensor."""
    image = image + (blurred(image, 1) - image) * np.float32(rng.uniform(0.0, 0.55))
    radius = ((X / SIZE - 0.5) ** 2 + (Y / SIZE - 0.5) ** 2) * 2
    image = image * (1 - rng.uniform(0.1, 0.5) * radius)[..., None].astype(np.float32)
    mix = rng.random()
    cast = np.array([mix * w + (1 - mix) * c for w, c in zip(_WARM, _COOL, strict=True)])
    image = image * (cast * rng.uniform(0.8, 1.12)).astype(np.float32)
    image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.85, 1.2))
    amount = np.float32(rng.uniform(0.012, 0.04))
    fine = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    blotch = resized(rng.standard_normal((SIZE // 2, SIZE // 2), dtype=np.float32))
    tint = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(0.5)
    return image + amount * ((fine + 0.7 * blotch)[..., None] + tint)
