"""One image of one drawing in one domain."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from trainers.data.openmoji.clipart import clipart
from trainers.data.openmoji.drawings import Drawing
from trainers.data.openmoji.infograph import infograph
from trainers.data.openmoji.painting import painting
from trainers.data.openmoji.raster import Floats, Rng, generator, to_bytes
from trainers.data.openmoji.real import real
from trainers.data.openmoji.sketch import sketch

Domain = Literal["real", "painting", "clipart", "infograph", "sketch"]

DOMAINS: tuple[Domain, ...] = get_args(Domain)

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
    Raises KeyError for an unknown domain, ValueError for a smaller size.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, not {size}")
    renderer = _RENDERERS[domain]
    rng = generator(len(rng_key), *rng_key, DOMAINS.index(domain), int(drawing.code_point, 16))
    return to_bytes(renderer(drawing, rng, size))
