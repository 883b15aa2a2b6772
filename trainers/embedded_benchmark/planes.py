"""Planes and images: noise, blur, and reading them at other places."""

from functools import lru_cache

import numpy as np
from PIL import Image

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng


def resized(plane: Floats) -> Floats:
    """A float plane (h, w) scaled smoothly to (SIZE, SIZE)."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def noise(rng: Rng, cells: float | tuple[float, float], octaves: int = 1) -> Floats:
    """Smooth noise (SIZE, SIZE) of mean 0 and spread about 1.

    cells: number of bumps across the image, or (down, across); each further octave doubles
    them at half the height.
    """
    down, across = cells if isinstance(cells, tuple) else (cells, cells)
    total = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(octaves):
        shape = tuple(int(min(SIZE, max(2, round(n * 2**octave)))) for n in (down, across))
        bumps = rng.standard_normal(shape, dtype=np.float32)
        plane = bumps if shape == (SIZE, SIZE) else resized(bumps)
        total += plane * np.float32(1.4 * 0.5**octave)
    return total


@lru_cache(maxsize=32)
def _blur_matrix(radius: float) -> Floats:
    distance = np.arange(SIZE)[:, None] - np.arange(SIZE)[None, :]
    weight = np.exp(-0.5 * (distance / radius) ** 2)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def blurred(plane: Floats, radius: float) -> Floats:
    """A plane or image after a Gaussian blur; radius in pixels."""
    if radius <= 0:
        return plane
    # At this size two products with a banded matrix beat any sliding window in numpy.
    matrix = _blur_matrix(radius)
    if plane.ndim == 2:
        return matrix @ plane @ matrix.T
    return np.moveaxis(matrix @ np.moveaxis(plane, 2, 0) @ matrix.T, 0, 2)


def sampled(plane: Floats, x: Floats, y: Floats) -> Floats:
    """A plane or image read bilinearly at pixel positions (x, y)."""
    x, y = np.clip(x, 0, SIZE - 1.001), np.clip(y, 0, SIZE - 1.001)
    left, top = x.astype(np.intp), y.astype(np.intp)
    fx, fy = (x - left).astype(np.float32), (y - top).astype(np.float32)
    if plane.ndim == 3:
        fx, fy = fx[..., None], fy[..., None]
    upper = plane[top, left] * (1 - fx) + plane[top, left + 1] * fx
    lower = plane[top + 1, left] * (1 - fx) + plane[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy
