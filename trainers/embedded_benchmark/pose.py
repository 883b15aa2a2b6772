"""How a drawing lies in an image."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng
from trainers.embedded_benchmark.drawings import Layer, raster


@dataclass(frozen=True)
class Pose:
    """How a drawing lies in an image of side 1: its side, centre, turn and foreshortening.

    scale: side of the drawing relative to the image's; x, y: centre of the drawing;
    angle: radians; flip: mirrored; stretch: width over height; lean_x, lean_y: strength of the
    perspective, 0 for none, at most about 0.3.
    """

    scale: float
    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0
    flip: bool = False
    stretch: float = 1.0
    lean_x: float = 0.0
    lean_y: float = 0.0

    def layer(
        self, code_point: str, layer: Layer, stroke: int = 1, palette: int = 0
    ) -> tuple[Floats, Floats]:
        """Colour (SIZE, SIZE, 3) and coverage (SIZE, SIZE) of a drawing's layer, see `raster`."""
        image = self.apply(raster(code_point, layer, stroke, palette))
        array = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
        return array[..., :3], array[..., 3]

    def apply(self, image: Image.Image) -> Image.Image:
        """The image under this pose on a transparent canvas of SIZE x SIZE pixels."""
        side = max(8, round(self.scale * SIZE))
        if side < image.width:  # shrink with a proper filter first: transform() only samples
            image = image.resize((side, side), Image.Resampling.BOX, reducing_gap=None)
        ratio = image.width / (self.scale * SIZE)
        cos, sin = math.cos(self.angle) * ratio, math.sin(self.angle) * ratio
        across = (-1.0 if self.flip else 1.0) / self.stretch
        a, b, d, e = cos * across, sin * across, -sin, cos
        half = image.width / 2
        g, h = self.lean_x / (self.scale * SIZE), self.lean_y / (self.scale * SIZE)
        centre_x, centre_y = self.x * SIZE, self.y * SIZE
        one = 1.0 - g * centre_x - h * centre_y
        c = -a * centre_x - b * centre_y
        f = -d * centre_x - e * centre_y
        # The centre of the source is added through the homogeneous coordinate.
        to_x = (a + half * g, b + half * h, c + half * one)
        to_y = (d + half * g, e + half * h, f + half * one)
        data = tuple(value / one for value in (*to_x, *to_y, g, h))
        return image.transform(
            (SIZE, SIZE), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR
        )


def random_pose(rng: Rng, *, scale: tuple[float, float], turn: float, shift: float) -> Pose:
    """A pose near the centre; turn: largest angle in degrees, shift: of the side."""
    return Pose(
        scale=rng.uniform(*scale),
        x=float(0.5 + rng.uniform(-shift, shift)),
        y=float(0.5 + rng.uniform(-shift, shift)),
        angle=math.radians(rng.uniform(-turn, turn)),
        flip=rng.random() < 0.5,
        stretch=rng.uniform(0.92, 1.08),
    )
