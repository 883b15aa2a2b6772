"""One image of one drawing in one domain, and the domain clipart."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from trainers.embedded_benchmark.drawings import Drawing
from trainers.embedded_benchmark.infograph import infograph
from trainers.embedded_benchmark.painting import painting
from trainers.embedded_benchmark.raster import (
    PALETTES,
    STROKES,
    Floats,
    Rng,
    generator,
    over,
    pixels,
    random_pose,
    raster,
    recoloured,
    to_bytes,
)
from trainers.embedded_benchmark.real import real
from trainers.embedded_benchmark.sketch import sketch

Domain = Literal["real", "painting", "clipart", "infograph", "sketch"]

DOMAINS: tuple[Domain, ...] = get_args(Domain)


def clipart(item: Drawing, rng: Rng, size: int) -> Floats:
    """Return the whole drawing, crisp on white, as an image (size, size, 3) in [0, 1]."""
    palette = 0 if rng.random() < 0.6 else int(rng.integers(1, PALETTES))
    pose = random_pose(rng, scale=(0.78, 1.02), turn=10, shift=0.04)
    fill, fill_mask = pixels(pose.apply(raster(item, "colour", 1, palette), size))
    stroke = int(rng.integers(len(STROKES)))
    line, line_mask = pixels(pose.apply(raster(item, "line", stroke), size))
    fill = recoloured(
        fill,
        turn=rng.normal(0, 0.15),
        saturation=rng.uniform(0.9, 1.35),
        gain=rng.uniform(0.92, 1.05),
    )
    image = np.ones((size, size, 3), np.float32)
    image = over(image, np.clip(fill, 0, 1), fill_mask)
    return over(image, line, line_mask)


_RENDERERS: dict[Domain, Callable[[Drawing, Rng, int], Floats]] = {
    "real": real,
    "painting": painting,
    "clipart": clipart,
    "infograph": infograph,
    "sketch": sketch,
}


def render(
    drawing: Drawing, domain: Domain, rng_key: tuple[int, ...], size: int = 64
) -> npt.NDArray[np.uint8]:
    """Return an image (size, size, 3) of the drawing in the style of the domain.

    rng_key: non-negative integers, such as (seed, index); with the drawing and the domain they
    determine the image, in every process. size: pixels a side, at least 32.
    """
    renderer = _RENDERERS[domain]
    rng = generator(len(rng_key), *rng_key, DOMAINS.index(domain), int(drawing.code_point, 16))
    return to_bytes(renderer(drawing, rng, size))
