"""An image of the whole benchmark: one row per class, one column per domain."""

import io
import math
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from trainers.data.formats.index import Split
from trainers.data.schema import part_path, read_header
from trainers.data.storage import open_store
from trainers.embedded_benchmark.render import DOMAINS, Domain

_CELL, _LABEL, _HEAD, _GAP = 66, 96, 16, 10  # pixels
_ROWS = 20  # classes below each other before the next column starts


def contact_sheet(root: Path, path: Path, split: Split = "train") -> Path:
    """Write a PNG with the first image of every class in every domain; return its path.

    Raises FileNotFoundError if the benchmark is not in ``root``.
    """
    first = part_path(root, DOMAINS[0], split)
    if not first.exists():
        raise FileNotFoundError(f"no {first}")
    names = read_header(open_store(first.parent), first.name).class_names
    width = _LABEL + _CELL * len(DOMAINS) + _GAP
    rows = min(_ROWS, len(names))
    columns = math.ceil(len(names) / rows)
    sheet = Image.new("RGB", (width * columns, _HEAD + _CELL * rows), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for index, name in enumerate(names):
        left, top = index // rows * width, _HEAD + index % rows * _CELL
        draw.text((left + 4, top + _CELL // 2 - 6), name, "black", font)
    for position, domain in enumerate(DOMAINS):
        for column in range(columns):
            left = column * width + _LABEL + position * _CELL
            draw.text((left + 4, 2), domain, "black", font)
        for index, image in _first_images(root, domain, split).items():
            left = index // rows * width + _LABEL + position * _CELL
            cell = image.resize((_CELL - 2, _CELL - 2))
            sheet.paste(cell, (left, _HEAD + index % rows * _CELL))
    sheet.save(path)
    return path


def _first_images(root: Path, domain: Domain, split: Split) -> dict[int, Image.Image]:
    images: dict[int, Image.Image] = {}
    for part in sorted((root / domain / split).glob("part-*.parquet")):
        table = pq.read_table(part, columns=["image", "label"])
        for index, label in enumerate(table["label"].to_pylist()):
            if label not in images:
                data = table["image"][index]["bytes"].as_py()
                images[label] = Image.open(io.BytesIO(data)).convert("RGB")
    return images
