"""Prepared data read back by other means than the project's own reader."""

import io
import json
from collections import Counter

import pyarrow.parquet as pq
from PIL import Image

from trainers.data.storage import open_store

Row = tuple[str, str, tuple[int, int, int]]
"""Path, class name, and the colour in the middle of the image."""


def rows(root, split):
    """All rows of `<domain>/<split>`, in the order of the files."""
    store = open_store(root)
    found = []
    for info in store.list(split):
        with store.open(store.relative(info)) as file:
            table = pq.read_table(file)
        names = names_in(store, store.relative(info))
        for row, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
            with Image.open(io.BytesIO(row["bytes"])) as image:
                middle = (image.width // 2, image.height // 2)
                colour = image.convert("RGB").getpixel(middle)
                assert image.mode in ("L", "RGB")
            assert isinstance(colour, tuple)
            found.append((row["path"], names[label], colour))
    return found


def names_in(store, path):
    """The class names in a file's metadata."""
    with store.open(path) as file:
        metadata = pq.read_schema(file).metadata
    return json.loads(metadata[b"class_names"])


def counts(root, split):
    """How many images of each class."""
    return dict(Counter(name for _, name, _ in rows(root, split)))
