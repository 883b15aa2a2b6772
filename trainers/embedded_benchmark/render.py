"""One image of one drawing in one domain, and the domain clipart."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng, generator
from trainers.embedded_benchmark.classes import DOMAINS, Domain
from trainers.embedded_benchmark.colours import over, recoloured, to_bytes
from trainers.embedded_benchmark.drawings import PALETTES, STROKES
from trainers.embedded_benchmark.infograph import infograph
from trainers.embedded_benchmark.painting import painting
from trainers.embedded_benchmark.pose import random_pose
from trainers.embedded_benchmark.real import real
from trainers.embedded_benchmark.sketch import sketch


def clipart(code_point: str, rng: Rng) -> Floats:
    """The whole drawing, crisp on white."""
    palette = 0 if rng.random() < 0.6 else int(rng.integers(1, PALETTES))
    pose = random_pose(rng, scale=(0.78, 1.02), turn=10, shift=0.04)
    fill, fill_mask = pose.layer(code_point, "colour", 1, palette)
    line, line_mask = pose.layer(code_point, "line", int(rng.integers(len(STROKES))))
    fill = recoloured(fill, rng, turn=0.15, saturation=(0.9, 1.35), gain=(0.92, 1.05))
    image = over(np.ones((SIZE, SIZE, 3), np.float32), np.clip(fill, 0, 1), fill_mask)
    return over(image, line, line_mask)


_RENDERERS: dict[Domain, Callable[[str, Rng], Floats]] = {
    "real": real,
    "painting": painting,
    "clipart": clipart,
    "infograph": infograph,
    "sketch": sketch,
}


def render(code_point: str, domain: Domain, rng_key: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An image (SIZE, SIZE, 3) of a drawing in the style of the domain.

    rng_key: non-negative integers, such as (seed, index); with the drawing and the domain they
    determine the image, in every process.
    """
    rng = generator(len(rng_key), *rng_key, DOMAINS.index(domain), int(code_point, 16))
    return to_bytes(_RENDERERS[domain](code_point, rng))
