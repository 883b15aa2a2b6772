"""The domain clipart: the whole drawing, crisp and colourful, on white."""

import numpy as np

from trainers.data.openmoji.drawings import Drawing
from trainers.data.openmoji.raster import (
    PALETTES,
    STROKES,
    Floats,
    Rng,
    over,
    pixels,
    random_pose,
    raster,
    recoloured,
)


def clipart(item: Drawing, rng: Rng, size: int) -> Floats:
    """Return an image (size, size, 3) in [0, 1] of the drawing as clip art."""
    palette = 0 if rng.random() < 0.6 else int(rng.integers(1, PALETTES))
    pose = random_pose(rng, scale=(0.78, 1.02), turn=10, shift=0.04)
    fill, fill_mask = pixels(pose.apply(raster(item, "colour", 1, palette), size))
    stroke = int(rng.integers(len(STROKES)))
    line, line_mask = pixels(pose.apply(raster(item, "line", stroke), size))
    fill = recoloured(
        fill,
        turn=float(rng.normal(0, 0.15)),
        saturation=float(rng.uniform(0.9, 1.35)),
        gain=float(rng.uniform(0.92, 1.05)),
    )
    image = np.ones((size, size, 3), np.float32)
    image = over(image, np.clip(fill, 0, 1), fill_mask)
    return over(image, line, line_mask)
