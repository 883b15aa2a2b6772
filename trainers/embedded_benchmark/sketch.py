"""The domain sketch: the outlines drawn by an unsteady hand on paper."""

import math

import numpy as np

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng, X, Y
from trainers.embedded_benchmark.colours import rgb
from trainers.embedded_benchmark.planes import noise, sampled
from trainers.embedded_benchmark.pose import random_pose


def sketch(code_point: str, rng: Rng) -> Floats:
    """An image of the drawing's outlines in pencil or ink."""
    pose = random_pose(rng, scale=(0.82, 1.06), turn=10, shift=0.04)
    colour, coverage = pose.layer(code_point, "line", int(rng.integers(2)))
    dark = coverage * (1 - colour.mean(axis=2))
    ink = np.zeros((SIZE, SIZE), np.float32)
    passes = int(rng.integers(1, 4))  # an unsteady hand goes over the lines more than once
    for _ in range(passes):
        ink = np.maximum(ink, _shaky(dark, rng) * np.float32(rng.uniform(0.6, 1.0)))
    if rng.random() < 0.4:
        fill, mask = pose.layer(code_point, "colour")
        shade = mask * (1 - fill.mean(axis=2))
        ink = np.maximum(ink, 0.8 * shade * _hatching(rng))
    # Pencil catches the grain of the paper: the line is broken where the paper is deep.
    grain = noise(rng, SIZE) * 0.8 + noise(rng, SIZE / 2) * 0.4
    ink *= np.clip(1 - rng.uniform(0.05, 0.35) * np.abs(grain), 0, 1)
    ink = np.clip(ink * rng.uniform(1.0, 1.45), 0, 1)
    paper = _paper(rng)
    return paper + (_tone(rng) - paper) * ink[..., None]


def _shaky(dark: Floats, rng: Rng) -> Floats:
    reach, bumps = np.float32(rng.uniform(0.2, 0.8)), rng.uniform(3, 8)
    right, down = rng.normal(0, 0.5, 2).astype(np.float32)
    x = X + reach * noise(rng, bumps) + right
    y = Y + reach * noise(rng, bumps) + down
    return sampled(dark, x, y) * np.clip(0.85 + 0.25 * noise(rng, 4), 0.25, 1.1)


def _hatching(rng: Rng) -> Floats:
    angle, spacing = math.radians(rng.uniform(25, 65)), rng.uniform(2.6, 4.2)
    across = (X * math.cos(angle) + Y * math.sin(angle)) + 0.8 * noise(rng, 5)
    stripes = np.clip(np.cos(across * np.float32(2 * math.pi / spacing)), 0, 1)
    return stripes.astype(np.float32)


def _paper(rng: Rng) -> Floats:
    warmth = rng.uniform(0.0, 0.11) if rng.random() < 0.75 else 0.01
    tone = rgb(rng.uniform(0.08, 0.14), warmth, rng.uniform(0.86, 0.99))
    roughness = rng.uniform(0.01, 0.03)
    uneven = noise(rng, 2) * 0.012 + noise(rng, SIZE) * roughness
    return tone * (1 + uneven)[..., None]


def _tone(rng: Rng) -> Floats:
    kind = rng.random()
    if kind < 0.6:  # pencil, charcoal
        return np.full(3, rng.uniform(0.05, 0.35), np.float32)
    if kind < 0.85:  # sepia
        return rgb(0.06, rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.35))
    return rgb(0.62, rng.uniform(0.2, 0.45), rng.uniform(0.2, 0.35))  # blue-black ink
