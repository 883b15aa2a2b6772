"""Files of images, and data sets of a few of them."""

import io
import struct

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from trainers.data.schema import LabelledImage, part_path, read_header, write_images
from trainers.data.store import EMBEDDED, open_root

CLASSES = ("apple", "bus", "cactus", "cat", "clock", "fish", "house", "umbrella")
"""Of the fixture `images_root`."""


def file_of(image, kind="PNG", **options):
    """An image, or its pixels (H, W, 3), as the content of a file."""
    file = io.BytesIO()
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    whole.save(file, kind, **options)
    return file.getvalue()


def exif_of(tags):
    """EXIF of tags (number, type, count, 4 bytes of value), which may be malformed."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHI4s", *t) for t in tags)
    return b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + directory + bytes(4)


def write_split(root, domain, split, classes, *, part=0, red=200):
    """A Parquet file with an image of each class; returns its path."""
    image = file_of(Image.new("RGB", (8, 8), (red, 30, 60)))
    images = [LabelledImage(image, f"{name}.png", label) for label, name in enumerate(classes)]
    path = part_path(root, domain, split, part)
    write_images(path, images, classes)
    return path


def write_first_images(root, classes, train, val, test):
    """The first images of some classes of the built-in benchmark, in all its domains and splits.

    train, val, test: how many of each class.
    """
    benchmark = open_root(EMBEDDED)
    counts = {"train": train, "val": val, "test": test}
    for path in sorted(benchmark.local_path().glob("*/*/*.parquet")):
        file = benchmark.relative(benchmark.filesystem.get_file_info(str(path)))
        domain, split, name = file.split("/")
        header, table = read_header(benchmark, file), pq.read_table(path)
        images = []
        for label, of_class in enumerate(sorted(classes)):
            rows = pc.indices_nonzero(pc.equal(table["label"], header.class_names.index(of_class)))
            for row in table["image"].take(rows[: counts[split]]).to_pylist():
                images.append(LabelledImage(row["bytes"], row["path"], label))
        write_images(root / domain / split / name, images, sorted(classes))
    return root


def write_photo_and_sketch(root, classes):
    """Splits train and val of an ID domain, and val of an OOD domain."""
    for domain, split in (("photo", "train"), ("photo", "val"), ("sketch", "val")):
        write_split(root, domain, split, classes)
    return root
