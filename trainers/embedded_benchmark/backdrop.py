"""Places for the domain real: a textured ground in perspective under a sky, wall or foliage."""

import math

import numpy as np

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng, X, Y
from trainers.embedded_benchmark.colours import rgb
from trainers.embedded_benchmark.planes import blurred, noise, sampled


def backdrop(rng: Rng) -> tuple[Floats, float]:
    """A place and its horizon.

    horizon: share of the height that is above the ground; 0 where the camera looks straight
    down and all is ground.
    """
    texture = _ground_texture(rng)
    if rng.random() < 0.25:
        return _seen_from_above(texture, rng), 0.0
    horizon = rng.uniform(0.3, 0.68)
    behind = (_sky, _wall, _foliage)[int(rng.integers(3))](rng)
    ground = _receding(texture, rng, horizon)
    edge = np.clip((Y - horizon * SIZE) / (0.02 * SIZE) + 0.5, 0, 1)[..., None]
    behind = blurred(behind, rng.uniform(0, 2.5))  # out of focus
    return (behind + (ground - behind) * edge).astype(np.float32), horizon


def _mixed(first: Floats, second: Floats, weight: Floats) -> Floats:
    return first + (second - first) * np.clip(weight, 0, 1)[..., None]


def _ground_texture(rng: Rng) -> Floats:
    """An image of grass, wood, stone, sand, tiles or cloth, which repeats."""
    kind = int(rng.integers(6))
    value = rng.uniform(0.4, 0.8)
    if kind == 0:
        hue = rng.uniform(0.2, 0.36)
        blades = 0.5 + 0.3 * noise(rng, (24, 40)) + 0.15 * noise(rng, 5)
        return _mixed(rgb(hue, 0.75, value * 0.5), rgb(hue - 0.06, 0.6, value), blades)
    if kind == 1:
        hue = rng.uniform(0.04, 0.1)
        planks = int(rng.integers(3, 7))
        seam = np.abs(np.sin(math.pi * planks * X / SIZE)) < 0.12
        tone = rng.normal(0, 0.15, planks)[(X * planks / SIZE).astype(int)]
        veins = 0.5 + 0.3 * noise(rng, (4, 40), 2) + tone
        wood = _mixed(rgb(hue, 0.65, value * 0.6), rgb(hue, 0.45, value), veins)
        return np.where(seam[..., None], wood * 0.45, wood).astype(np.float32)
    if kind == 2:
        grey = 0.5 + 0.25 * noise(rng, 8, 3)
        return _mixed(rgb(0.6, 0.08, value * 0.5), rgb(0.1, 0.08, value), grey)
    if kind == 3:
        ripple = 0.5 + 0.2 * np.sin(Y / SIZE * 2 * math.pi * 7 + 2 * noise(rng, 3))
        ripple = ripple + 0.2 * noise(rng, 40)
        return _mixed(rgb(0.1, 0.45, value * 0.75), rgb(0.12, 0.35, value + 0.15), ripple)
    if kind == 4:
        count = int(rng.integers(2, 5))
        check = ((X * count * 2 // SIZE) + (Y * count * 2 // SIZE)) % 2
        hue = rng.random()
        tiles = 0.2 + 0.6 * check + 0.08 * noise(rng, 12)
        return _mixed(rgb(hue, 0.3, value * 0.6), rgb(hue + 0.1, 0.15, value + 0.1), tiles)
    hue = rng.random()
    weave = 0.5 + 0.25 * np.sin(X * 1.6) * np.sin(Y * 1.6) + 0.2 * noise(rng, 4)
    return _mixed(rgb(hue, 0.55, value * 0.65), rgb(hue, 0.4, value), weave)


def _seen_from_above(texture: Floats, rng: Rng) -> Floats:
    turn, zoom = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.1)
    u = (X * math.cos(turn) - Y * math.sin(turn)) * zoom
    v = (X * math.sin(turn) + Y * math.cos(turn)) * zoom
    light = 1 + 0.18 * noise(rng, 2)
    return sampled(texture, u % (SIZE - 1), v % (SIZE - 1)) * light[..., None]


def _receding(texture: Floats, rng: Rng, horizon: float) -> Floats:
    below = np.maximum(Y / SIZE - horizon, 0.0) + 0.06
    depth = np.float32(rng.uniform(6, 12)) / below
    across = (X / SIZE - 0.5 + rng.uniform(-0.3, 0.3)) * depth * rng.uniform(1.5, 3.0)
    start = rng.uniform(0, SIZE)
    plane = sampled(texture, across % (SIZE - 1), (depth + start) % (SIZE - 1))
    # Far away the texture averages out and the air lightens it.
    far = np.clip(1 - below / (1 - horizon) * 2.2, 0, 1)[..., None]
    mean = texture.mean(axis=(0, 1))
    return (plane + (mean * 1.05 - plane) * far * 0.8).astype(np.float32)


def _sky(rng: Rng) -> Floats:
    if rng.random() < 0.7:
        top, low = rgb(0.58, rng.uniform(0.4, 0.75), 0.85), rgb(0.56, 0.15, 0.97)
    else:
        top, low = rgb(0.68, 0.45, 0.5), rgb(rng.uniform(0.02, 0.1), 0.5, 0.95)
    sky = _mixed(top, low, Y / SIZE * 1.7)
    clouds = np.clip(noise(rng, (5, 3), 3) * 0.6 - rng.uniform(0, 0.5), 0, 0.9)
    hills = noise(rng, (2, 4), 2) * 0.04 + rng.uniform(0.3, 0.6)
    image = _mixed(sky, np.full(3, 0.97, np.float32), clouds)
    if rng.random() < 0.5:
        ridge = hills[SIZE // 2][None, :] * SIZE
        far = rgb(rng.uniform(0.3, 0.62), 0.35, rng.uniform(0.35, 0.6))
        image = _mixed(image, far, np.clip(Y - ridge, 0, 1))
    return image


def _wall(rng: Rng) -> Floats:
    hue, value = rng.random(), rng.uniform(0.45, 0.9)
    base = rgb(hue, rng.uniform(0.1, 0.45), value)
    kind = int(rng.integers(3))
    if kind == 0:  # bricks
        rows = int(rng.integers(9, 15))
        row = np.floor(Y * rows / SIZE)
        column = X * rows / SIZE / 2 + 0.5 * (row % 2)
        mortar = (Y * rows / SIZE - row < 0.18) | (column - np.floor(column) < 0.09)
        tones = rng.normal(1, 0.12, 61)[(row * 7 + np.floor(column) * 13).astype(int) % 61]
        brick = rgb(0.03, 0.55, value * 0.75) * tones[..., None]
        image = np.where(mortar[..., None], rgb(0.1, 0.1, value), brick)
    elif kind == 1:  # striped paper
        stripes = np.sin(X / SIZE * 2 * math.pi * rng.uniform(4, 10)) > 0
        image = _mixed(base, base * 0.85, stripes.astype(np.float32))
    else:
        image = np.broadcast_to(base, (SIZE, SIZE, 3))
    slope = rng.uniform(-0.5, 0.5)
    light = 1 + slope * (X / SIZE - 0.5) + 0.06 * noise(rng, 6, 2)
    return (image * light[..., None]).astype(np.float32)


def _foliage(rng: Rng) -> Floats:
    hue = rng.uniform(0.2, 0.42)
    leaves = 0.5 + 0.4 * noise(rng, 7, 3)
    image = _mixed(rgb(hue, 0.7, 0.2), rgb(hue - 0.05, 0.55, 0.62), leaves)
    # Points of light out of focus become discs.
    spots = (rng.random((SIZE, SIZE)) < 6 / SIZE**2).astype(np.float32)
    glow = np.clip(blurred(spots, 2.5) * 60 - 0.4, 0, 0.6)
    return _mixed(image, rgb(hue - 0.08, 0.2, 1.0), glow)
