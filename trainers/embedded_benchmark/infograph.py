"""The domain infograph: the drawing as a small pictogram in a card of text and charts."""

import math
from dataclasses import replace
from string import ascii_lowercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainers.embedded_benchmark.arrays import SIZE, Floats, Rng
from trainers.embedded_benchmark.colours import over, recoloured, rgb
from trainers.embedded_benchmark.drawings import PALETTES
from trainers.embedded_benchmark.pose import random_pose

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

_UNITS = 128  # the card is drawn on a canvas of this many pixels and then reduced
_FONT = ImageFont.load_default_imagefont()  # Pillow's bitmap font has the same pixels everywhere


def infograph(code_point: str, rng: Rng) -> Floats:
    """An image of a card with the drawing as a pictogram."""
    colours = _scheme(rng)
    canvas = Image.new("RGB", (_UNITS, _UNITS), colours[0])
    draw = ImageDraw.Draw(canvas)
    side = rng.uniform(0.6, 0.76) * _UNITS
    image_box, others = _layout(rng, side)
    _furnish(draw, rng, others, colours)
    badge = _badge(draw, rng, image_box, colours)
    card = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255
    return _pictogram(card, code_point, rng, image_box, badge)


def _triple(colour: Floats) -> Colour:
    r, g, b = (int(255 * min(max(float(v), 0.0), 1.0)) for v in colour)
    return r, g, b


def _scheme(rng: Rng) -> list[Colour]:
    """The colours of a card: background, ink of the text, and three accents."""
    hue = rng.random()
    if rng.random() < 0.75:
        background = rgb(hue, rng.uniform(0.0, 0.2), rng.uniform(0.92, 1.0))
        ink = rgb(hue, 0.3, rng.uniform(0.2, 0.45))
    else:
        background = rgb(hue, rng.uniform(0.3, 0.75), rng.uniform(0.25, 0.6))
        ink = rgb(hue, 0.08, 0.95)
    steps = (0.0, rng.uniform(0.08, 0.2), rng.uniform(0.4, 0.6))
    accents = [rgb(hue + step, rng.uniform(0.55, 0.9), rng.uniform(0.7, 0.95)) for step in steps]
    return [_triple(colour) for colour in (background, ink, *accents)]


def _layout(rng: Rng, side: float) -> tuple[Box, list[Box]]:
    """The place of the pictogram and the free boxes around it, in canvas units."""
    edge = 5.0
    x = float(rng.choice([edge, (_UNITS - side) / 2, _UNITS - side - edge]))
    y = rng.uniform(20, _UNITS - side - 6)
    boxes: list[Box] = [(edge, 4, _UNITS - edge, min(18.0, y - 2))]
    left, right = x - edge, _UNITS - edge - x - side
    rows = [(20.0, y - 3), (y, y + side), (y + side + 3, _UNITS - 4.0)]
    for index, (top, bottom) in enumerate(rows):
        if bottom - top < 9:
            continue
        if index != 1:
            middle = rng.uniform(0.35, 0.65) * _UNITS
            boxes += [(edge, top, middle - 2, bottom), (middle + 2, top, _UNITS - edge, bottom)]
            continue
        cut = rng.uniform(0.35, 0.65) * side + y
        for start, stop in ((edge, edge + left - 4), (x + side + 4, x + side + right)):
            if stop - start > 12:
                boxes += [(start, top, stop, cut - 2), (start, cut + 2, stop, bottom)]
    return (x, y, x + side, y + side), boxes


def _furnish(draw: ImageDraw.ImageDraw, rng: Rng, boxes: list[Box], scheme: list[Colour]) -> None:
    _title(draw, rng, boxes[0], scheme)
    for box in boxes[1:]:
        width, height = box[2] - box[0], box[3] - box[1]
        kinds = [_lines]
        if height > 14 and width > 14:
            kinds += [_bars, _pie, _lines]
        if width > 1.3 * height or height > 1.3 * width:
            kinds += [_arrow, _rows]
        kinds[int(rng.integers(len(kinds)))](draw, rng, box, scheme)


def _word(rng: Rng) -> str:
    letters = rng.integers(0, 26, int(rng.integers(2, 8)))
    return "".join(ascii_lowercase[i] for i in letters)


def _title(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> None:
    accent = scheme[int(rng.integers(2, 5))]
    words = " ".join(_word(rng).upper() for _ in range(3))
    ink = accent
    if rng.random() < 0.5:
        draw.rectangle((0, 0, _UNITS, box[3]), fill=accent)
        ink = 255, 255, 255
    draw.text((box[0] + rng.integers(0, 20), 3), words, ink, _FONT)


def _lines(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> None:
    """Fill the box with lines of letters."""
    y = box[1]
    size = rng.uniform(7, 9)
    letters = max(1, int((box[2] - box[0]) / 6.2))
    head = rng.random() < 0.4
    while y + 8 <= box[3] + 1:
        text = " ".join(_word(rng) for _ in range(4))[: max(1, letters - int(rng.integers(0, 3)))]
        draw.text((box[0], y - 2), text, scheme[2] if head else scheme[1], _FONT)
        head = False
        y += size


def _rows(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> None:
    """Draw horizontal bars, such as shares in per cent."""
    x0, y0, x1, y1 = box
    step = rng.uniform(5.5, 9)
    for index in range(int((y1 - y0) / step)):
        top = y0 + index * step
        share = rng.uniform(0.2, 1.0)
        draw.rectangle((x0, top, x1, top + step * 0.55), outline=scheme[1])
        draw.rectangle((x0, top, x0 + share * (x1 - x0), top + step * 0.55), fill=scheme[2])


def _bars(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> None:
    x0, y0, x1, y1 = box
    count = max(2, min(7, int((x1 - x0) / 7)))
    step = (x1 - x0) / count
    for index, height in enumerate(rng.uniform(0.2, 1.0, count)):
        colour = scheme[2 + index % 3]
        top = y1 - 1 - height * (y1 - y0 - 2)
        draw.rectangle((x0 + index * step, top, x0 + (index + 0.65) * step, y1 - 1), fill=colour)
    draw.line((x0, y1, x1, y1), scheme[1], 2)


def _pie(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> None:
    side = min(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
    cuts = np.sort(rng.uniform(0, 360, 2))
    bounds = (x, y, x + side, y + side)
    draw.ellipse(bounds, fill=scheme[2])
    draw.pieslice(bounds, float(cuts[0]), float(cuts[1]), fill=scheme[3])
    draw.pieslice(bounds, float(cuts[1]), float(cuts[1] + rng.uniform(20, 90)), fill=scheme[4])
    if rng.random() < 0.4:
        inset = side * 0.28
        draw.ellipse((x + inset, y + inset, x + side - inset, y + side - inset), fill=scheme[0])


def _arrow(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> None:
    """Draw an arrow to the right, or down in a box that is higher than wide."""
    x0, y0, x1, y1 = box
    colour = scheme[int(rng.integers(2, 5))]
    thick = min(x1 - x0, y1 - y0, 14.0) / 2
    start, tip, middle, turned = x0, x1, (y0 + y1) / 2, False
    if x1 - x0 <= y1 - y0:
        start, tip, middle, turned = y0, y1, (x0 + x1) / 2, True

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(across, along) if turned else (along, across) for along, across in points]

    draw.line(at((start, middle), (tip - thick, middle)), colour, max(2, round(thick * 0.7)))
    back = tip - 1.6 * thick
    draw.polygon(at((back, middle - thick), (tip, middle), (back, middle + thick)), fill=colour)


def _badge(draw: ImageDraw.ImageDraw, rng: Rng, box: Box, scheme: list[Colour]) -> Colour:
    """Draw what the pictogram lies on; returns its colour."""
    kind = rng.random()
    accent = scheme[int(rng.integers(2, 5))]
    if kind < 0.45:
        draw.ellipse(box, fill=accent)
    elif kind < 0.65:
        draw.rounded_rectangle(box, radius=10, fill=accent)
    elif kind < 0.85:
        draw.ellipse(box, fill=(255, 255, 255), outline=accent, width=4)
        return 255, 255, 255
    else:
        return scheme[0]
    return accent


def _pictogram(card: Floats, code_point: str, rng: Rng, box: Box, badge: Colour) -> Floats:
    inset = (box[2] - box[0]) / _UNITS
    pose = random_pose(rng, scale=(0.88 * inset, 1.0 * inset), turn=5, shift=0.0)
    x, y = (box[0] + box[2]) / 2 / _UNITS, (box[1] + box[3]) / 2 / _UNITS
    pose = replace(pose, x=x, y=y, stretch=1.0)
    fill, mask = pose.layer(code_point, "colour", 1, int(rng.integers(PALETTES)))
    line, line_mask = pose.layer(code_point, "line", 2)
    bright = sum(badge) / 765
    contrast = np.full(3, 0.12 if bright > 0.55 else 1.0, np.float32)
    style = rng.random()
    if style < 0.35:  # flat: one colour for the body, the lines cut out in the badge's colour
        body = rgb(rng.random(), 0.7, 0.4) if bright > 0.6 else contrast
        card = over(card, 0.85 * body + 0.15 * fill, mask)
        # Cutting out works for lines only: some drawings have black areas among their lines.
        thin = float(line_mask.sum()) < 0.6 * float(mask.sum())
        cut = np.array(badge, np.float32) / 255
        return over(card, cut if rng.random() < 0.4 and thin else 0.25 * body, line_mask)
    if style < 0.6:  # line icon
        return over(card, contrast, np.clip(1.25 * line_mask, 0, 1))
    fill = recoloured(fill, rng, turn=0.5 * math.pi, saturation=(0.5, 1.3), gain=(1.0, 1.0))
    card = over(card, np.clip(fill, 0, 1), mask)
    return over(card, line * 0 + 0.15, line_mask)
